"""Texts on which configurations differ are those where they do, in the order of how far."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fleetune.compare.configuration import group
from fleetune.compare.disagreement import disagreements, frame
from fleetune.compare.held_out import HeldOutTexts
from fleetune.compare.result import TrialResult
from fleetune.compare.row import Row, summed_up
from tests.unit.synthetic_runs import multi_label_run, trial

NAMES = ["a", "b", "c"]
KINDS = ("lora", "ia3", "bitfit")


def deciding(kind: str, seed: int, chosen: list[int], truth: list[int], sure: float = 4.0) -> TrialResult:
    logits = (np.eye(3)[chosen] * sure).astype(np.float32)
    return trial(kind, seed, NAMES, predictions={"test": (np.array(truth), logits)}, metric="accuracy")


def rows_of(*trials: TrialResult) -> list[Row]:
    return [summed_up(one, "test", "accuracy") for one in group(trials)]


def told(*trials: TrialResult) -> list[Row]:
    """Rows of which none counts as having learned nothing: so few texts would often say so."""
    return [replace(row, degenerate={}) for row in rows_of(*trials)]


def test_texts_with_most_disagreement_come_first_and_all_agreed_ones_not_at_all() -> None:
    truth = [0, 1, 2, 0, 1]
    rows = told(
        deciding("lora", 0, [0, 1, 2, 0, 1], truth),
        deciding("ia3", 0, [0, 2, 2, 1, 0], truth),
        deciding("bitfit", 0, [0, 0, 2, 0, 0], truth),
    )
    texts = HeldOutTexts([f"text {i}" for i in range(5)], [f"a.csv:{i}" for i in range(5)])
    found = disagreements(rows, "test", texts)
    assert [one.index for one in found] == [1, 4, 3], "three ways apart; then two to one, fewest right first"
    assert found[0].decisions == {"lora": ("b",), "ia3": ("c",), "bitfit": ("a",)}
    assert (found[0].truth, found[0].text, found[0].place) == (("b",), "text 1", "a.csv:1")
    assert [one.right for one in found] == pytest.approx([1 / 3, 1 / 3, 2 / 3])
    assert [one.index for one in disagreements(rows, "test", limit=1)] == [1]
    assert list(frame(found)["decision of ia3"]) == ["c", "a", "b"] and len(frame([])) == 0
    json.dumps([one.to_json() for one in found])


def test_a_configuration_decides_as_most_of_its_seeds_and_the_surer_where_they_are_even() -> None:
    truth = [0, 0, 1, 2]
    most = [
        deciding("lora", seed, chosen, truth) for seed, chosen in enumerate(([0, 0, 1, 2], [0, 0, 1, 2], [1, 1, 1, 1]))
    ]
    even = [deciding("ia3", 0, [0, 0, 1, 2], truth, sure=1.0), deciding("ia3", 1, [0, 2, 1, 2], truth, sure=5.0)]
    (only,) = disagreements(told(*most, *even), "test")
    assert only.index == 1 and only.decisions == {"lora": ("a",), "ia3": ("c",)}


def test_what_learned_nothing_and_the_floor_are_left_out() -> None:
    truth = [0, 1, 2, 0]
    good = deciding("lora", 0, [0, 1, 2, 1], truth)
    constant = deciding("ia3", 0, [0, 0, 0, 0], truth)
    floor = replace(deciding("head", 0, [0, 0, 0, 0], truth), kind="majority", method="majority")
    broken = deciding("bitfit", 0, [0, 1, 2, 0], truth)
    broken.predictions["test"][1][2] = np.nan
    unfinished = trial("full", 0, NAMES, status="pending", predictions={})
    rows = rows_of(good, constant, floor, broken, unfinished)
    assert disagreements(rows, "test") == [] and disagreements([], "test") == []


def test_other_texts_are_refused() -> None:
    rows = told(deciding("lora", 0, [0, 1, 2], [0, 1, 1]), deciding("ia3", 0, [0, 1, 2], [0, 1, 2]))
    with pytest.raises(ValueError, match="not of the same texts"):
        disagreements(rows, "test")


def test_sets_of_labels_are_compared_label_by_label() -> None:
    rows = [summed_up(one, "test", "f1_macro") for one in group(multi_label_run().trials)]
    found = disagreements(rows, "test", limit=400)
    truth = rows[0].configuration.first.predictions["test"][0]
    names = rows[0].configuration.first.label_names
    distances = []
    for one in found:
        assert one.truth == tuple(name for name, given in zip(names, truth[one.index], strict=True) if given)
        sets = [set(labels) for labels in one.decisions.values()]
        pairs = [len(a ^ b) for i, a in enumerate(sets) for b in sets[i + 1 :]]
        distances.append(np.mean(pairs))
        assert one.right == pytest.approx(np.mean([labels == set(one.truth) for labels in sets]))
    assert distances == sorted(distances, reverse=True) and distances[-1] > 0


@settings(deadline=None)
@given(arrays(np.int64, st.tuples(st.just(3), st.integers(4, 25)), elements=st.integers(0, 2)))
def test_every_text_with_two_different_decisions_is_found_and_no_other(chosen: np.ndarray) -> None:
    truth = [0, 1, 2] + [0] * (chosen.shape[1] - 3)
    chosen[:, :3] = [0, 1, 2]
    trials = [deciding(kind, 0, list(row), truth) for kind, row in zip(KINDS, chosen, strict=True)]
    rows = told(*trials)
    found = disagreements(rows, "test", limit=100)
    assert {one.index for one in found} == set(np.flatnonzero((chosen != chosen[0]).any(axis=0)))
