"""Thresholds: the best on the texts they are tuned on, careful where there are few, and no better than they are."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.metrics import f1_score

from fleetune.metrics import evaluate, sigmoid
from fleetune.thresholds import (
    FOLDS,
    best_threshold,
    cross_fitted_thresholds,
    final_thresholds,
    fold_of,
    threshold_for,
    tuned_thresholds,
    validation_thresholds,
)
from tests.unit.synthetic_runs import multi_label_run

NUMBERS = [0.0, 0.1, 0.25, 0.5, 0.5 + 1e-16, 0.75, 1.0 - 1e-16, 1.0]


def macro_f1(labels: NDArray[Any], probabilities: NDArray[Any], thresholds: NDArray[Any]) -> float:
    return float(f1_score(labels, (probabilities >= thresholds).astype(int), average="macro", zero_division=0))


@given(st.lists(st.tuples(st.booleans(), st.sampled_from(NUMBERS) | st.floats(0, 1)), min_size=1, max_size=30))
@settings(max_examples=300, deadline=None)
def test_no_threshold_has_a_higher_f1_and_none_as_high_is_nearer_to_a_half(texts: list[tuple[bool, float]]) -> None:
    truth, scores = np.array([one[0] for one in texts]), np.array([one[1] for one in texts])
    truth[0] = True
    found = best_threshold(truth, scores)
    assert 0.0 <= found <= 1.0

    def f1(threshold: float) -> float:
        chosen = scores >= threshold
        return float(2 * (truth & chosen).sum() / (truth.sum() + chosen.sum()))

    best = max(f1(threshold) for threshold in [0.0, *scores])
    assert f1(found) == pytest.approx(best, abs=1e-12)
    if f1(0.5) == best:
        assert ((scores >= found) == (scores >= 0.5)).all()


def test_a_threshold_lies_between_two_probabilities() -> None:
    truth, scores = np.array([True, True, False]), np.array([0.4, 0.3, 0.1])
    assert best_threshold(truth, scores) == pytest.approx(0.2)
    assert best_threshold(truth, np.array([0.9, 0.7, 0.2])) == 0.5
    assert best_threshold(truth, np.array([0.1, 0.2, 0.3])) == pytest.approx(0.05), "the label is given to all"


def test_few_positives_stay_near_the_common_threshold_and_none_at_a_half() -> None:
    rng = np.random.default_rng(0)
    labels = (rng.random((400, 4)) < [0.4, 0.4, 0.01, 0.0]).astype(np.uint8)
    labels[:2, 2] = 1
    # Every probability is too low by the same amount: a common threshold near 0.1 is right for all labels.
    probabilities = sigmoid(1.5 * (2.0 * labels - 1.0) + rng.normal(size=labels.shape) - 2.0)
    probabilities[labels[:, 2] == 1, 2] = 0.9
    found = tuned_thresholds(labels, probabilities)
    alone = [best_threshold(labels[:, label] == 1, probabilities[:, label]) for label in range(3)]
    assert found[3] == 0.5
    assert abs(found[0] - alone[0]) < 0.02
    assert alone[2] > 0.4 and found[2] < 0.35, "its own optimum rests on a handful of texts"
    assert macro_f1(labels[:, :2], probabilities[:, :2], found[:2]) > 1.3 * macro_f1(
        labels[:, :2], probabilities[:, :2], np.full(2, 0.5)
    )


def test_nothing_to_tune_on_is_a_half() -> None:
    none, some = np.zeros((3, 2), dtype=np.uint8), np.ones((3, 2), dtype=np.uint8)
    assert tuned_thresholds(none, np.full((3, 2), 0.9)).tolist() == [0.5, 0.5]
    assert tuned_thresholds(some, np.full((3, 2), np.nan)).tolist() == [0.5, 0.5]
    assert final_thresholds("tuned", 2).tolist() == [0.5, 0.5]
    assert final_thresholds("tuned", 2, (none[:0], none[:0])).tolist() == [0.5, 0.5]
    assert final_thresholds(0.3, 2, (some, np.zeros((3, 2)))).tolist() == [0.3, 0.3]
    assert cross_fitted_thresholds(some[:1], np.full((1, 2), 0.1)).tolist() == [[0.5, 0.5]]
    assert validation_thresholds("tuned", np.array([0, 1]), np.zeros((2, 2))) is None
    assert np.isnan(
        evaluate(some, np.full((3, 2), np.nan), validation_thresholds("tuned", some, some * np.nan))["loss"]
    )


@given(st.integers(1, 60))
def test_folds_are_even_and_always_the_same(texts: int) -> None:
    folds = fold_of(texts)
    assert (folds == fold_of(texts)).all()
    assert np.ptp(np.bincount(folds, minlength=FOLDS)) <= 1


def test_no_text_is_judged_by_a_threshold_that_it_helped_to_choose() -> None:
    rng = np.random.default_rng(1)
    labels, logits = (rng.random((50, 3)) < 0.4).astype(np.uint8), rng.normal(size=(50, 3))
    before = validation_thresholds("tuned", labels, logits)
    assert before is not None
    moved = 0
    for text in range(len(labels)):
        changed_labels, changed_logits = labels.copy(), logits.copy()
        changed_labels[text] = 1 - labels[text]
        changed_logits[text] = -3.0
        after = validation_thresholds("tuned", changed_labels, changed_logits)
        assert after is not None
        assert (after[text] == before[text]).all()
        moved += int((after != before).any())
    assert moved > 25, "and yet it helps to choose those of others"


def test_scores_that_say_nothing_gain_nothing_by_tuning() -> None:
    """Naive tuning makes noise look like signal; the cross-fitted score is what new texts will give."""
    naive, nested, new = [], [], []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        labels, probabilities = (rng.random((60, 4)) < 0.3).astype(np.uint8), rng.random((60, 4))
        others, their_probabilities = (rng.random((2000, 4)) < 0.3).astype(np.uint8), rng.random((2000, 4))
        tuned = tuned_thresholds(labels, probabilities)
        naive.append(macro_f1(labels, probabilities, tuned))
        nested.append(macro_f1(labels, probabilities, cross_fitted_thresholds(labels, probabilities)))
        new.append(macro_f1(others, their_probabilities, tuned))
    error = np.std(np.subtract(nested, new)) / np.sqrt(len(new))
    assert np.mean(naive) - np.mean(new) > 0.02
    assert np.mean(nested) - np.mean(new) < 2 * error
    assert abs(np.mean(nested) - np.mean(new)) < 0.02


def test_a_trials_numbers_follow_from_its_predictions_and_its_thresholds() -> None:
    trial = multi_label_run().trials[0]
    assert trial.thresholds("test").tolist() == [0.5] * 5, "a run without the setting decided by 0.5"  # type: ignore[union-attr]
    tuned = replace(trial, training=trial.training | {"thresholds": "tuned"})
    labels, logits = tuned.predictions["test"]
    validation_labels, validation_logits = tuned.predictions["validation"]
    chosen = tuned_thresholds(validation_labels, sigmoid(validation_logits))
    np.testing.assert_array_equal(tuned.final_thresholds, chosen)
    assert tuned.scores("test")["f1_macro"] == pytest.approx(macro_f1(labels, sigmoid(logits), chosen))
    assert (tuned.decisions("test") == (sigmoid(logits) >= chosen)).all()
    labels, logits = tuned.predictions["validation"]
    crossed = cross_fitted_thresholds(labels, sigmoid(logits))
    assert tuned.scores("validation")["f1_macro"] == pytest.approx(macro_f1(labels, sigmoid(logits), crossed))
    fixed = replace(trial, training=trial.training | {"thresholds": 0.2})
    assert (fixed.decisions("validation") == (sigmoid(logits) >= 0.2)).all()
    alone = replace(tuned, predictions={"test": tuned.predictions["test"]})
    assert alone.thresholds("test").tolist() == [0.5] * 5  # type: ignore[union-attr]


def test_noise_that_tuned_thresholds_part_is_degenerate_all_the_same() -> None:
    trial = multi_label_run().trials[0]
    rng = np.random.default_rng(0)
    noise: dict[str, Any] = {}
    for split, (labels, logits) in trial.predictions.items():
        signed = rng.normal(size=logits.shape) - 0.2 * labels
        noise[split] = (labels, (-2.0 + 1e-3 * signed).astype(np.float32))
    lost = replace(trial, training={"thresholds": "tuned"}, predictions=noise)
    assert "not above chance" in (lost.degenerate_reason("test") or "")
    assert trial.degenerate_reason("test") is None


@given(
    st.lists(st.tuples(st.booleans(), st.sampled_from(NUMBERS) | st.floats(0, 1)), min_size=1, max_size=25),
    st.sampled_from([0.0, 0.3, 0.5, 0.6, 0.75, 0.9, 1.0]),
)
@settings(max_examples=300, deadline=None)
def test_a_wished_precision_or_recall_is_kept_at_the_least_cost(texts: list[tuple[bool, float]], wished: float) -> None:
    truth, scores = np.array([one[0] for one in texts]), np.array([one[1] for one in texts])

    def reached(threshold: float) -> tuple[int, int]:
        chosen = scores >= threshold
        return int((truth & chosen).sum()), int(chosen.sum())

    # Every set of texts that a threshold can choose, by brute force.
    possible = [reached(threshold) for threshold in scores]
    precise = [(hits, -given) for hits, given in possible if hits and hits / given >= wished]
    found = threshold_for(truth, scores, precision=wished)
    if found is None:
        assert not precise
    else:
        hits, given = reached(found)
        assert (hits, -given) == max(precise) and 0.0 <= found <= 1.0
    complete = [given for hits, given in possible if hits and hits / truth.sum() >= wished]
    found = threshold_for(truth, scores, recall=wished)
    if found is None:
        assert not truth.any()
    else:
        assert reached(found)[1] == min(complete)


def test_a_wish_that_nothing_can_keep_has_no_threshold() -> None:
    truth, scores = np.array([False, True, False]), np.array([0.9, 0.5, 0.4])
    assert threshold_for(truth, scores, precision=0.6) is None
    assert threshold_for(truth, scores, precision=0.5) == pytest.approx(0.45)
    assert threshold_for(truth, scores, recall=1.0) == pytest.approx(0.45)
    assert threshold_for(truth, np.array([0.9, np.nan, 0.1]), recall=0.1) is None
    assert threshold_for(np.zeros(0, dtype=bool), np.zeros(0), recall=0.1) is None
    with pytest.raises(ValueError, match="not both"):
        threshold_for(truth, scores)
