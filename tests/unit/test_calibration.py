"""Temperature: what it finds, what it leaves alone, and what reliability and operating points say of it."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.special import expit, log_expit, log_softmax, logit, softmax
from sklearn.metrics import log_loss, precision_score, recall_score

from fleetune.calibration import (
    HIGHEST,
    LOWEST,
    calibrated_probabilities,
    calibrated_thresholds,
    fit_temperature,
)
from fleetune.compare.calibration import (
    bundle_scores,
    operating_points,
    reliability,
    temperature_of,
    trial_points,
)
from fleetune.compare.configuration import group
from fleetune.compare.result import TrialResult
from fleetune.compare.row import Row, summed_up
from fleetune.metrics import evaluate
from tests.unit.synthetic_runs import multi_class_run, multi_label_run, trial


def drawn(temperature: float, multi_label: bool, texts: int = 4000) -> tuple[NDArray[Any], NDArray[Any]]:
    """Returns labels that follow the probabilities of logits over `temperature`, and the logits."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0.0, 2.0, (texts, 3))
    if multi_label:
        return (rng.random(logits.shape) < expit(logits / temperature)).astype(int), logits
    gumbel = rng.gumbel(size=logits.shape)
    return (logits / temperature + gumbel).argmax(axis=1), logits


@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_it_finds_the_temperature_that_labels_were_drawn_by(temperature: float, multi_label: bool) -> None:
    found = fit_temperature(*drawn(temperature, multi_label))
    assert found == pytest.approx(temperature, rel=0.06)


@pytest.mark.parametrize("multi_label", [False, True])
def test_no_other_temperature_has_a_lower_cost(multi_label: bool) -> None:
    labels, logits = drawn(2.0, multi_label, texts=60)

    def cost(temperature: float) -> float:
        if multi_label:
            loss = -log_expit(np.where(labels == 1, logits, -logits) / temperature).sum()
        else:
            loss = -log_softmax(logits / temperature, axis=1)[np.arange(len(labels)), labels].sum()
        return float(loss + math.log(temperature) ** 2 / 2)

    found = fit_temperature(labels, logits)
    others = np.exp(np.linspace(math.log(LOWEST), math.log(HIGHEST), 2000))
    assert cost(found) <= min(map(cost, others)) + 1e-6


def test_where_nothing_can_be_told_it_is_one() -> None:
    logits = np.random.default_rng(0).normal(size=(6, 2))
    assert fit_temperature(np.empty(0, dtype=int), np.empty((0, 2))) == 1.0
    assert fit_temperature(np.zeros(6, dtype=int), logits) == 1.0, "one class only"
    assert fit_temperature(np.zeros((6, 2), dtype=int), logits) == 1.0
    assert fit_temperature(np.array([0, 1, 0, 1, 0, 1]), np.where(logits > 1, np.nan, logits)) == 1.0
    assert fit_temperature(np.array([0, 1]), np.array([[np.inf, 0.0], [0.0, 1.0]])) == 1.0
    assert fit_temperature(np.array([0, 1, 0]), np.zeros((3, 2))) == pytest.approx(1.0, abs=1e-5), "no opinion"


def test_a_validation_without_a_mistake_does_not_make_it_certain() -> None:
    labels = np.tile([0, 1], 15)
    logits = np.where(labels[:, None] == [0, 1], 2.5, -2.5).astype(float)
    found = fit_temperature(labels, logits)
    assert 0.5 < found < 1.0
    assert calibrated_probabilities(logits, found, False).max() < 0.9999
    wrong = fit_temperature(1 - labels, logits)
    assert wrong == pytest.approx(HIGHEST, rel=1e-3), "the bound, where every answer is wrong"


@given(
    st.lists(st.lists(st.integers(-800, 800), min_size=3, max_size=3), min_size=1, max_size=12),
    st.floats(0.25, HIGHEST),
    st.lists(st.sampled_from([0.0, 0.02, 0.3, 0.5, 0.77, 0.98, 1.0]), min_size=3, max_size=3),
)
@settings(max_examples=200, deadline=None)
def test_no_decision_changes_by_it(rows: list[list[int]], temperature: float, limits: list[float]) -> None:
    logits, thresholds = np.array(rows) / 100.0, np.array(limits)
    # A probability that equals its threshold but for rounding may fall on either side.
    logits = np.where(abs(logits - logit(thresholds)) < 1e-9, 0.1, logits)
    before = expit(logits) >= thresholds
    after = calibrated_probabilities(logits, temperature, True) >= calibrated_thresholds(thresholds, temperature)
    np.testing.assert_array_equal(before, after)
    chosen = calibrated_probabilities(logits, temperature, False).argmax(axis=1)
    np.testing.assert_array_equal(chosen, logits.argmax(axis=1))


def test_it_lowers_log_loss_and_error_on_texts_it_has_not_seen() -> None:
    labels, logits = drawn(3.0, False)
    found = fit_temperature(labels[:1000], logits[:1000])
    before, after = (evaluate(labels[1000:], logits[1000:] / t) for t in (1.0, found))
    assert after["log_loss"] < before["log_loss"] and after["ece"] < before["ece"] / 4
    assert after["accuracy"] == before["accuracy"]
    assert after["log_loss"] == pytest.approx(log_loss(labels[1000:], softmax(logits[1000:] / found, axis=1)))


def row_of(trials: list[TrialResult], kind: str = "lora") -> Row:
    return summed_up(next(one for one in group(trials) if one.first.kind == kind), "test", "f1_macro")


@pytest.mark.parametrize("run", [multi_class_run(3), multi_label_run(3)], ids=["classes", "labels"])
def test_reliability_recomputes_from_the_predictions(run: Any) -> None:
    found = reliability(row_of(run.trials), "test")
    trials = [one for one in run.trials if one.kind == "lora"]
    assert found.temperatures == {one.seed: fit_temperature(*one.predictions["validation"]) for one in trials}
    expected = {}
    for one in trials:
        labels, logits = one.predictions["test"]
        cooled = logits.astype(float) / found.temperatures[one.seed]
        expected[one.seed] = (evaluate(labels, logits)["ece"], evaluate(labels, cooled)["ece"])
    assert found.ece == pytest.approx(np.mean([before for before, _ in expected.values()]))
    assert found.calibrated_ece == pytest.approx(np.mean([after for _, after in expected.values()]))
    each = len(run.trials[0].label_names) if run.trials[0].multi_label else 1
    assert found.plain["count"].sum() == found.calibrated["count"].sum() == 300 * 3 * each
    frame = found.frame()
    for kind, bins in (("as trained", found.plain), ("calibrated", found.calibrated)):
        own = frame[frame["probabilities"] == kind]
        assert own["count"].sum() == bins["count"].sum() and (own["count"] > 0).all()
        assert ((own["confidence"] > own["low"]) & (own["confidence"] <= own["high"])).all()


def test_reliability_without_predictions_is_empty() -> None:
    one = replace(trial("lora", 0, ["a", "b"]), predictions={})
    found = reliability(row_of([one]), "test")
    assert math.isnan(found.ece) and found.temperatures == {} and found.frame().empty
    without = replace(one, predictions={"test": trial("lora", 0, ["a", "b"]).predictions["test"]})
    assert temperature_of(without) == 1.0


def test_operating_points_recompute_from_the_predictions() -> None:
    run = multi_label_run(3)
    found = operating_points(row_of(run.trials), "test", wished=(0.7, 0.9))
    labels = run.trials[0].label_names
    assert len(found.points) == 2 * 2 * len(labels)
    point = next(one for one in found.points if (one.wish, one.wished, one.label) == ("recall", 0.9, labels[1]))
    precisions, recalls = [], []
    for one in (one for one in run.trials if one.kind == "lora"):
        temperature = fit_temperature(*one.predictions["validation"])
        truth, logits = one.predictions["validation"]
        scores = expit(logits[:, 1].astype(float) / temperature)
        kept = [limit for limit in scores if recall_score(truth[:, 1], scores >= limit) >= 0.9]
        truth, logits = one.predictions["test"]
        threshold = next(p.threshold for p in trial_points(one, "test", [("recall", 0.9)]) if p.label == labels[1])
        assert threshold is not None
        assert max(scores[scores < max(kept)], default=0.0) < threshold <= max(kept)
        chosen = expit(logits[:, 1].astype(float) / temperature) >= threshold
        precisions.append(precision_score(truth[:, 1], chosen))
        recalls.append(recall_score(truth[:, 1], chosen))
    assert (point.seeds, point.reached) == (3, 3)
    assert point.precision == pytest.approx(np.mean(precisions)) and point.recall == pytest.approx(np.mean(recalls))
    assert point.validation_recall is not None and point.validation_recall >= 0.9
    assert list(found.frame()["label"]) == [one.label for one in found.points]


def test_operating_points_of_two_labels_are_of_the_second_and_of_more_there_are_none() -> None:
    two = operating_points(row_of([trial("lora", seed, ["no", "yes"]) for seed in range(2)]), "test")
    assert {point.label for point in two.points} == {"yes"} and len(two.points) == 6
    none = operating_points(row_of(multi_class_run().trials), "test")
    assert none.points == () and none.frame().empty and "wished" in none.frame().columns


def test_a_wish_that_validation_cannot_keep_is_said() -> None:
    one = trial("lora", 0, ["no", "yes"])
    labels = one.predictions["validation"][0]
    upside_down = np.stack([labels, 1 - labels], axis=1).astype(np.float32) * 4
    found = operating_points(
        row_of([replace(one, predictions={**one.predictions, "validation": (labels, upside_down)})]), "test"
    )
    precise = [point for point in found.points if (point.wish, point.wished) == ("precision", 0.95)]
    assert [(point.seeds, point.reached, point.threshold, point.precision) for point in precise] == [(1, 0, None, None)]


def test_scores_of_a_bundle_are_those_of_its_own_decisions() -> None:
    one = trial("lora", 0, ["no", "yes"])
    labels, logits = one.predictions["test"]
    chances = softmax(logits.astype(float) / 2.0, axis=1)
    scores = bundle_scores(one, "test", 2.0, positive_threshold=0.8)
    chosen = chances[:, 1] >= 0.8
    assert scores["precision"] == pytest.approx(precision_score(labels, chosen))
    assert scores["recall"] == pytest.approx(recall_score(labels, chosen))
    assert scores["accuracy"] == pytest.approx((labels == chosen).mean())
    assert scores["log_loss"] == pytest.approx(log_loss(labels, chances))
    assert scores["ece"] == pytest.approx(evaluate(labels, logits.astype(float) / 2.0)["ece"])
    many = multi_label_run(1).trials[0]
    for name, value in many.scores("test").items():
        calibrated = bundle_scores(many, "test", 1.7)[name]
        if name not in ("log_loss", "ece", "loss"):
            assert calibrated == pytest.approx(value), name
