"""Planted weaknesses on slices and labels are found, with intervals; where nothing is planted nothing is weak."""

from __future__ import annotations

import json
import time
import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, f1_score

from fleetune.compare.configuration import group
from fleetune.compare.held_out import HeldOutTexts
from fleetune.compare.result import TrialResult
from fleetune.compare.row import Row, summed_up
from fleetune.compare.slices import frame, slice_scores, weak_spots_frame, where_it_loses
from fleetune.compare.slicing import RARE, slices_of
from tests.unit.synthetic_runs import trial

NAMES = ["anger", "joy", "sadness"]


def held_out(texts: int, tokens: bool = True, **columns: list[str]) -> HeldOutTexts:
    lengths = np.random.default_rng(texts).integers(3, 60, texts)
    words = ["x" * int(length) for length in lengths]
    return HeldOutTexts(words, [f"data.csv:{i}" for i in range(texts)], lengths if tokens else None, columns)


def with_chances(kind: str, seed: int, chances: np.ndarray, **changes: Any) -> TrialResult:
    """A trial that gets text i right with probability chances[i]; three classes in turn."""
    rng = np.random.default_rng([ord(kind[0]), seed])
    labels = np.arange(len(chances)) % 3
    chosen = np.where(rng.random(len(chances)) < chances, labels, (labels + 1) % 3)
    logits = (np.eye(3)[chosen] * 4).astype(np.float32)
    return trial(kind, seed, NAMES, predictions={"test": (labels, logits)}, metric="accuracy", **changes)


def row_of(*trials: TrialResult, metric: str = "accuracy") -> Row:
    return summed_up(group(trials)[0], "test", metric)


def test_length_is_cut_into_parts_of_equal_size_that_hold_every_text_once() -> None:
    texts = held_out(400)
    parts = slices_of(texts)
    assert [part.column for part in parts] == ["length"] * 4
    assert sorted(np.concatenate([part.texts for part in parts])) == list(range(400))
    assert texts.tokens is not None
    for part in parts:
        low, high = map(int, part.value.removesuffix(" tokens").split(" to "))
        lengths = texts.tokens[part.texts]
        assert (lengths.min(), lengths.max()) == (low, high) and 80 <= len(part.texts) <= 120
    assert slices_of(held_out(400, tokens=False))[0].value.endswith("characters")
    assert slices_of(held_out(15)) == []


def test_values_of_few_texts_are_one_part_and_a_column_of_one_value_is_none() -> None:
    texts = held_out(
        60,
        language=["de"] * 30 + ["en"] * 20 + ["fr"] * 6 + ["it"] * 4,
        constant=["a"] * 60,
        number=[str(i) for i in range(60)],
        length=["short"] * 30 + ["long"] * 30,
    )
    sizes = {(part.column, part.value): len(part.texts) for part in slices_of(texts) if part.column != "length"}
    assert sizes == {
        ("language", "de"): 30,
        ("language", "en"): 20,
        ("language", RARE): 10,
        ("length (column)", "long"): 30,
        ("length (column)", "short"): 30,
    }


@given(st.lists(st.integers(0, 5), min_size=1, max_size=80))
def test_every_text_is_in_one_part_of_each_column(lengths: list[int]) -> None:
    texts = HeldOutTexts(["a"] * len(lengths), [""] * len(lengths), np.array(lengths), {"n": [str(n) for n in lengths]})
    for column in ("length", "n"):
        places = [place for part in slices_of(texts) if part.column == column for place in part.texts]
        assert sorted(places) in ([], list(range(len(lengths))))


def test_scores_on_slices_equal_scikit_learn_and_a_planted_weakness_is_found() -> None:
    source = ["mail"] * 150 + ["web"] * 450
    chances = np.where(np.array(source) == "mail", 0.6, 0.9)
    trials = [with_chances("lora", seed, chances) for seed in range(3)]
    found = {
        (one.column, one.value): one
        for one in slice_scores([row_of(*trials)], "test", held_out(600, source=source), "f1_macro")
    }
    mail = found["source", "mail"]
    by_seed, whole = [], []
    for one in trials:
        labels, logits = one.predictions["test"]
        by_seed.append(f1_score(labels[:150], logits[:150].argmax(1), average="macro"))
        whole.append(f1_score(labels, logits.argmax(1), average="macro"))
    assert (mail.texts, mail.mean, mail.spread) == (
        150,
        pytest.approx(np.mean(by_seed)),
        pytest.approx(np.std(by_seed, ddof=1)),
    )
    assert mail.difference == pytest.approx(np.mean(by_seed) - np.mean(whole))
    assert mail.is_weak and mail.interval is not None and mail.interval[1] < 0
    assert not found["source", "web"].is_weak and (found["source", "web"].interval or (0, 0))[0] > 0
    assert not any(one.is_weak for (column, _), one in found.items() if column == "length")


def test_a_high_loss_is_a_weakness_and_a_high_accuracy_is_none() -> None:
    chances = np.where(np.arange(400) < 100, 0.4, 0.95)
    texts = held_out(400, part=["first"] * 100 + ["rest"] * 300)
    for metric in ("log_loss", "accuracy"):
        found = slice_scores([row_of(with_chances("lora", 0, chances), metric=metric)], "test", texts, metric)
        assert {one.value for one in found if one.is_weak} == {"first"}
        assert all(one.spread is None for one in found), "one seed"


def test_intervals_cover_and_nothing_is_called_weak_where_nothing_is() -> None:
    texts = held_out(300, group=[f"g{i % 6}" for i in range(300)])
    covered, weak, looked = 0, 0, 0
    for seed in range(60):
        found = slice_scores([row_of(with_chances("lora", seed, np.full(300, 0.8)))], "test", texts, "accuracy")
        covered += sum(one.interval is not None and one.interval[0] <= 0 <= one.interval[1] for one in found)
        weak += any(one.is_weak for one in found)
        looked += len(found)
    assert 0.92 <= covered / looked <= 0.985
    assert weak <= 8, "60 times 5 % and three standard deviations"


def test_where_another_is_better_is_found_on_slices_and_labels() -> None:
    source = ["mail"] * 150 + ["web"] * 450
    chosen = row_of(*[with_chances("lora", s, np.where(np.arange(600) < 150, 0.5, 0.95)) for s in range(2)])
    rival_chances = np.where(np.arange(600) < 150, 0.85, np.where(np.arange(600) % 3 == 1, 0.4, 0.9))
    other = row_of(*[with_chances("bitfit", s, rival_chances) for s in range(2)])
    spots = where_it_loses(chosen, [chosen, other], "test", held_out(600, source=source), "accuracy")
    assert [spot.difference for spot in spots] == sorted((spot.difference for spot in spots), reverse=True)
    mail = next(spot for spot in spots if spot.value == "mail")
    assert mail.holds and mail.interval[0] > 0 and mail.other == "bitfit"
    assert mail.difference == pytest.approx(mail.other_mean - mail.chosen_mean)
    assert not any(spot.value == "web" for spot in spots)
    assert all(spot.difference > 0 for spot in spots) and spots[0].to_json()["exploratory"]
    reverse = where_it_loses(other, [chosen], "test", None, "accuracy")
    joy = next(spot for spot in reverse if spot.value == "joy")
    labels = np.arange(600) % 3
    expected = np.mean(
        [f1_score(labels, one.predictions["test"][1].argmax(1), average=None)[1] for one in chosen.configuration.done]
    )
    assert (joy.column, joy.metric, joy.texts) == ("label", "f1", 200)
    assert joy.other_mean == pytest.approx(expected)
    assert list(weak_spots_frame(reverse)["value"]) == [spot.value for spot in reverse]


def test_two_alike_hold_on_no_slice() -> None:
    texts = held_out(300, group=[f"g{i % 6}" for i in range(300)])
    holding = 0
    for seed in range(30):
        rows = [row_of(with_chances(kind, seed, np.full(300, 0.8))) for kind in ("lora", "bitfit")]
        holding += any(spot.holds for spot in where_it_loses(rows[0], rows[1:], "test", texts, "accuracy"))
    assert holding <= 5


def test_a_loss_that_is_lower_is_better_there() -> None:
    chosen = row_of(with_chances("lora", 0, np.full(200, 0.5)), metric="log_loss")
    other = row_of(with_chances("bitfit", 0, np.full(200, 0.9)), metric="log_loss")
    spots = where_it_loses(chosen, [other], "test", held_out(200), "log_loss")
    lengths = [spot for spot in spots if spot.column == "length"]
    assert len(lengths) == 4 and all(spot.interval[0] > 0 and spot.other_mean < spot.chosen_mean for spot in lengths)


def test_small_slices_multi_label_and_broken_logits_give_tables_without_warnings() -> None:
    names = ["a", "b", "c"]
    texts = held_out(300, rare=["x"] * 297 + ["y"] * 3)
    broken = trial("ia3", 0, names, multi_label=True)
    labels, logits = broken.predictions["test"]
    broken = replace(broken, predictions={**broken.predictions, "test": (labels, np.full_like(logits, np.nan))})
    rows = [row_of(trial("lora", s, names, multi_label=True), metric="roc_auc") for s in range(2)] + [row_of(broken)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for metric in ("f1_macro", "roc_auc", "ece", "exact_match", "matthews", "log_loss"):
            found = slice_scores(rows, "test", texts, metric)
            assert len(found) == 3 * 6
            assert all(np.isfinite(one.mean) for one in found[:12]) and np.isnan(found[-1].mean)
            assert not any(one.is_weak for one in found if one.texts < 10)
            json.dumps([one.to_json() for one in found], allow_nan=False)
            where_it_loses(rows[0], rows[1:], "test", texts, metric)
    assert len(frame(slice_scores(rows, "test", texts, "f1_macro"))) == 18 and len(frame([])) == 0


def test_rows_without_predictions_are_passed_over_and_other_texts_refused() -> None:
    unfinished = row_of(trial("lora", 0, NAMES, status="pending", predictions={}))
    row = row_of(with_chances("bitfit", 0, np.full(100, 0.8)))
    assert slice_scores([unfinished], "test", held_out(100), "accuracy") == []
    assert where_it_loses(unfinished, [row], "test", None, "accuracy") == []
    assert {one.name for one in slice_scores([unfinished, row], "test", held_out(100), "accuracy")} == {"bitfit"}
    with pytest.raises(ValueError, match="bitfit has predictions for 100 texts of test; expected 90"):
        slice_scores([row], "test", held_out(90), "accuracy")


def test_many_trials_and_texts_take_seconds() -> None:
    rows = [
        row_of(*[with_chances("lora", 10 * index + seed, np.full(5_000, 0.8)) for seed in range(5)])
        for index in range(12)
    ]
    texts = held_out(5_000, group=[f"g{i % 10}" for i in range(5_000)])
    start = time.perf_counter()
    assert len(slice_scores(rows, "test", texts, "f1_macro")) == 12 * 14
    assert time.perf_counter() - start < 60
    labels, logits = rows[0].configuration.done[0].predictions["test"]
    assert rows[0].scores[0] == pytest.approx(accuracy_score(labels, logits.argmax(1)))
