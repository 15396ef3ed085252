"""Planted wrong labels are found, right ones are mostly left alone, and nothing small or broken is an error."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fleetune.compare.configuration import group
from fleetune.compare.held_out import HeldOutTexts
from fleetune.compare.label_errors import frame, label_errors
from fleetune.compare.result import TrialResult
from fleetune.compare.row import Row, summed_up
from tests.unit.synthetic_runs import trial

NAMES = ["a", "b", "c", "d"]


def classes(kind: str, seed: int, truth: np.ndarray, given: np.ndarray, quality: float = 0.92) -> TrialResult:
    """A classifier that knows the true classes fairly well, judged by the given ones."""
    rng = np.random.default_rng([ord(kind[0]), seed])
    chosen = np.where(rng.random(len(truth)) < quality, truth, rng.integers(0, 4, len(truth)))
    logits = rng.normal(0, 0.7, (len(truth), 4)) + np.eye(4)[chosen] * 3.0
    return trial(kind, seed, NAMES, predictions={"test": (given, logits.astype(np.float32))})


def sets(kind: str, seed: int, truth: np.ndarray, given: np.ndarray) -> TrialResult:
    rng = np.random.default_rng([ord(kind[0]), seed])
    logits = (rng.normal(0, 1.0, truth.shape) + (2.0 * truth - 1.0) * 3.0).astype(np.float32)
    return trial(kind, seed, NAMES, multi_label=True, predictions={"test": (given, logits)})


def rows_of(*trials: TrialResult) -> list[Row]:
    return [summed_up(one, "test", "f1_macro") for one in group(trials)]


def planted(texts: int = 600, share: float = 0.05) -> tuple[np.ndarray, np.ndarray, set[int]]:
    rng = np.random.default_rng(5)
    truth = rng.integers(0, 4, texts)
    wrong = rng.choice(texts, round(share * texts), replace=False)
    given = truth.copy()
    given[wrong] = (given[wrong] + rng.integers(1, 4, len(wrong))) % 4
    return truth, given, set(wrong.tolist())


def test_most_planted_errors_are_found_and_most_found_are_planted() -> None:
    truth, labels, wrong = planted()
    before = labels.copy()
    rows = rows_of(*[classes(kind, seed, truth, labels) for kind in ("lora", "ia3") for seed in range(3)])
    texts = HeldOutTexts([f"text {i}" for i in range(600)], [f"a.csv:{i + 2}" for i in range(600)])
    found = label_errors(rows, "test", texts)
    hits = [one for one in found if one.index in wrong]
    assert len(hits) >= 0.9 * len(wrong) and len(hits) >= 0.9 * len(found)
    assert [one.quality for one in found] == sorted(one.quality for one in found)
    best = found[0]
    assert best.given == (NAMES[labels[best.index]],) and best.suggested == (NAMES[truth[best.index]],)
    assert (best.text, best.place) == (f"text {best.index}", f"a.csv:{best.index + 2}")
    assert best.disagreeing >= 5 and best.trials == 6
    assert len(label_errors(rows, "test", limit=3)) == 3
    assert (rows[0].configuration.first.predictions["test"][0] == before).all(), "nothing is changed"
    json.dumps([one.to_json() for one in found])
    assert next(iter(frame(found)["given"])) == best.given[0] and len(frame([])) == 0


def test_clean_labels_give_few() -> None:
    truth, _, _ = planted()
    rows = rows_of(*[classes("lora", seed, truth, truth) for seed in range(5)])
    assert len(label_errors(rows, "test", limit=600)) <= 6, "1 % of 600"


def test_disagreeing_trials_are_counted_by_their_decisions() -> None:
    truth, labels, _ = planted()
    rows = rows_of(*[classes("lora", seed, truth, labels, quality=0.8) for seed in range(4)])
    trials = rows[0].configuration.done
    for one in label_errors(rows, "test"):
        assert one.disagreeing == sum(int(t.decisions("test")[one.index] != labels[one.index]) for t in trials)


def test_planted_errors_of_several_labels_are_found_label_by_label() -> None:
    rng = np.random.default_rng(8)
    truth = (rng.random((500, 4)) < [0.5, 0.3, 0.2, 0.0]).astype(np.uint8)
    labels = truth.copy()
    cells = [(int(i), int(rng.integers(0, 3))) for i in rng.choice(500, 25, replace=False)]
    for text, label in cells:
        labels[text, label] ^= 1
    found = label_errors(rows_of(*[sets("lora", seed, truth, labels) for seed in range(3)]), "test", limit=500)
    flipped = {(one.index, NAMES.index(name)) for one in found for name in set(one.given) ^ set(one.suggested)}
    assert len(flipped & set(cells)) >= 0.75 * len(cells) and len(flipped) <= 35
    assert all(name != "d" for one in found for name in one.suggested), "a label that no text has is not judged"


def test_baselines_degenerate_and_broken_trials_have_no_say() -> None:
    truth, labels, _ = planted()
    good = classes("lora", 0, truth, labels)
    upside_down = replace(classes("ia3", 0, (truth + 1) % 4, labels), kind="tfidf", method="tfidf")
    nothing = classes("bitfit", 0, (truth + 1) % 4, labels)
    broken = classes("full", 0, (truth + 1) % 4, labels)
    broken.predictions["test"][1][7] = np.inf
    assert label_errors(rows_of(good, upside_down, nothing, broken), "test") == label_errors(rows_of(good), "test")
    assert label_errors(rows_of(upside_down, broken), "test") == [] == label_errors([], "test")


def test_other_texts_are_refused() -> None:
    truth, labels, _ = planted()
    with pytest.raises(ValueError, match="not of the same texts"):
        label_errors(rows_of(classes("lora", 0, truth, labels), classes("ia3", 0, truth, truth)), "test")


@settings(deadline=None)
@given(st.data(), st.integers(1, 45), st.booleans())
def test_small_and_lopsided_splits_never_fail_or_warn(data: st.DataObject, texts: int, multi_label: bool) -> None:
    seed = data.draw(st.integers(0, 999))
    rng = np.random.default_rng(seed)
    used = data.draw(st.integers(1, 4))
    truth: np.ndarray
    if multi_label:
        truth = (rng.random((texts, 4)) < data.draw(st.sampled_from([0.0, 0.05, 0.5, 1.0]))).astype(np.uint8)
        one = sets("lora", seed, rng.permutation(truth), truth)
    else:
        truth = rng.integers(0, used, texts)
        one = classes("lora", seed, rng.permutation(truth), truth)
    (row,) = rows_of(one)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = label_errors([replace(row, degenerate={})], "test")
    assert all(0 <= error.index < texts and error.given != error.suggested for error in found)
