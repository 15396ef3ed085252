"""Every score equals scikit-learn's, on random data and on the edges: absent classes, one class, nothing predicted."""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import sklearn.metrics as reference
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fleetune import metrics
from fleetune.errors import RecipeError

AVERAGES = ("micro", "macro", "weighted")
Sample = tuple[NDArray[np.int64], NDArray[np.float64]]


@pytest.fixture(autouse=True)
def _quiet_reference() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@st.composite
def single_label_samples(draw: st.DrawFn) -> Sample:
    """Labels drawn from a few of the classes, and probabilities with ties, so that classes go absent often."""
    num_labels, texts = draw(st.integers(2, 5)), draw(st.integers(1, 30))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    labels = rng.integers(0, draw(st.integers(1, num_labels)), texts)
    logits = rng.normal(size=(texts, num_labels)) * draw(st.sampled_from([0.0, 0.5, 3.0]))
    logits[:, draw(st.integers(0, num_labels - 1))] += draw(st.sampled_from([-8.0, 0.0, 8.0]))
    return labels, metrics.softmax(np.round(logits, 1))


@st.composite
def multi_label_samples(draw: st.DrawFn) -> Sample:
    num_labels, texts = draw(st.integers(1, 5)), draw(st.integers(1, 30))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    labels = (rng.random((texts, num_labels)) < rng.choice([0.0, 0.3, 0.7, 1.0], num_labels)).astype(np.int64)
    return labels, metrics.sigmoid(np.round(rng.normal(size=(texts, num_labels)) * 2 + rng.choice([-6, 0, 6]), 1))


def assert_averages(scores: dict[str, float], truth: NDArray[Any], predictions: NDArray[Any]) -> None:
    for average in AVERAGES:
        expected = reference.precision_recall_fscore_support(truth, predictions, average=average, zero_division=0)
        for name, value in zip(("precision", "recall", "f1"), expected[:3], strict=True):
            assert scores[f"{name}_{average}"] == pytest.approx(float(value), abs=1e-12), f"{name}_{average}"


@settings(deadline=None, max_examples=80)
@given(single_label_samples())
def test_single_label_scores_equal_scikit_learn(sample: Sample) -> None:
    labels, probabilities = sample
    classes = list(range(probabilities.shape[1]))
    scores = metrics.single_label_metrics(labels, probabilities)
    predictions = metrics.predicted_classes(probabilities)
    assert_averages(scores, labels, predictions)
    assert scores["accuracy"] == pytest.approx(reference.accuracy_score(labels, predictions), abs=1e-12)
    assert scores["matthews"] == pytest.approx(reference.matthews_corrcoef(labels, predictions), abs=1e-9)
    assert scores["log_loss"] == pytest.approx(reference.log_loss(labels, probabilities, labels=classes), rel=1e-9)
    area = (
        reference.roc_auc_score(labels, probabilities[:, 1])
        if len(classes) == 2
        else reference.roc_auc_score(labels, probabilities, multi_class="ovr", labels=classes)
    )
    assert scores["roc_auc"] == pytest.approx(float(area), abs=1e-12, nan_ok=True)
    if len(classes) == 2:
        second: dict[str, Callable[..., float]] = {
            "f1": reference.f1_score,
            "precision": reference.precision_score,
            "recall": reference.recall_score,
        }
        for name, score in second.items():
            assert scores[name] == pytest.approx(float(score(labels, predictions, zero_division=0)), abs=1e-12)


@settings(deadline=None, max_examples=80)
@given(multi_label_samples())
def test_multi_label_scores_equal_scikit_learn(sample: Sample) -> None:
    labels, probabilities = sample
    scores = metrics.multi_label_metrics(labels, probabilities)
    predictions = metrics.predicted_sets(probabilities)
    columns = range(labels.shape[1])
    if labels.shape[1] > 1:
        assert_averages(scores, labels, predictions)
    assert scores["exact_match"] == pytest.approx(float((labels == predictions).all(axis=1).mean()))
    defined = [k for k in columns if 0 < labels[:, k].sum() < len(labels)]
    areas = [reference.roc_auc_score(labels[:, k], probabilities[:, k]) for k in defined]
    assert scores["roc_auc"] == pytest.approx(np.mean(areas) if areas else np.nan, abs=1e-12, nan_ok=True)
    correlations = [reference.matthews_corrcoef(labels[:, k], predictions[:, k]) for k in columns]
    assert scores["matthews"] == pytest.approx(np.mean(correlations), abs=1e-9)
    losses = [reference.log_loss(labels[:, k], probabilities[:, k], labels=[0, 1]) for k in columns]
    assert scores["log_loss"] == pytest.approx(np.mean(losses), rel=1e-9)
    matrices = metrics.confusion_matrix(labels, predictions)
    if labels.shape[1] > 1:
        assert (matrices == reference.multilabel_confusion_matrix(labels, predictions)).all()


@settings(deadline=None, max_examples=40)
@given(single_label_samples())
def test_per_label_scores_and_confusions_equal_scikit_learn(sample: Sample) -> None:
    labels, probabilities = sample
    classes = list(range(probabilities.shape[1]))
    names = [f"label {index}" for index in classes]
    predictions = metrics.predicted_classes(probabilities)
    table = metrics.per_label_metrics(labels, probabilities, names)
    expected = reference.precision_recall_fscore_support(labels, predictions, labels=classes, zero_division=0)
    for key, column in zip(("precision", "recall", "f1", "support"), expected, strict=True):
        assert [table[name][key] for name in names] == pytest.approx(list(column), abs=1e-12)
    matrix = metrics.confusion_matrix(labels, predictions, len(classes))
    assert (matrix == reference.confusion_matrix(labels, predictions, labels=classes)).all()


def test_calibration_error_equals_a_plain_loop_over_fifteen_bins() -> None:
    rng = np.random.default_rng(3)
    confidences = np.append(rng.random(500), [0.0, 1 / 15, 2 / 15, 1.0])
    correct = rng.random(504) < confidences**2
    expected = 0.0
    for index in range(15):
        low, high = index / 15, (index + 1) / 15
        inside = (confidences > low) & (confidences <= high) | ((index == 0) & (confidences == 0.0))
        if inside.any():
            expected += abs(confidences[inside].mean() - correct[inside].mean()) * inside.sum() / len(confidences)
    assert metrics.expected_calibration_error(confidences, correct) == pytest.approx(expected, abs=1e-12)


def test_calibration_error_of_a_known_case() -> None:
    assert metrics.single_label_metrics(np.array([0, 1]), np.array([[0.8, 0.2], [0.8, 0.2]]))["ece"] == pytest.approx(
        0.3
    )


def test_multi_label_calibration_is_the_mean_over_labels_of_each_label_alone() -> None:
    rng = np.random.default_rng(5)
    probabilities, labels = rng.random((80, 3)), rng.integers(0, 2, (80, 3))
    alone = [metrics.expected_calibration_error(probabilities[:, k], labels[:, k]) for k in range(3)]
    assert metrics.multi_label_metrics(labels, probabilities)["ece"] == pytest.approx(np.mean(alone))


def test_evaluate_applies_softmax_or_sigmoid_by_the_shape_of_labels() -> None:
    logits = np.array([[2.0, 1.0], [0.5, 3.0], [-1.0, -2.0]], dtype=np.float32)
    single = metrics.evaluate(np.array([0, 1, 1]), logits)
    assert single["accuracy"] == pytest.approx(2 / 3)
    assert single["loss"] == pytest.approx(
        reference.log_loss([0, 1, 1], np.exp(logits.astype(float)) / np.exp(logits.astype(float)).sum(1)[:, None])
    )
    multi = metrics.evaluate(np.array([[1, 1], [1, 1], [0, 1]]), logits)
    assert multi["exact_match"] == pytest.approx(2 / 3)
    assert "accuracy" not in multi and "exact_match" not in single
    assert set(single) == metrics.available_metrics(2, False)
    assert set(multi) == metrics.available_metrics(2, True)


def test_loss_stays_exact_where_probabilities_vanish() -> None:
    scores = metrics.evaluate(np.array([1]), np.array([[900.0, 0.0]]))
    assert scores["loss"] == pytest.approx(900.0)
    assert metrics.evaluate(np.array([[1]]), np.array([[-900.0]]))["loss"] == pytest.approx(900.0)


def test_thresholds_move_multi_label_decisions() -> None:
    labels, logits = np.array([[1, 0], [1, 1]]), np.array([[-0.5, -0.5], [0.5, 0.5]])
    assert metrics.evaluate(labels, logits)["exact_match"] == 0.5
    assert metrics.evaluate(labels, logits, np.array([0.3, 0.5]))["exact_match"] == 1.0


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("labels", [np.array([0, 1]), np.array([[0, 1, 0], [1, 1, 0]])])
def test_a_logit_that_is_no_number_makes_every_score_nan(labels: NDArray[Any], bad: float) -> None:
    logits = np.array([[0.0, bad, 1.0], [1.0, 0.0, 0.0]])
    if labels.ndim == 2 and np.isinf(bad):
        logits[0, 1] = np.nan
    scores = metrics.evaluate(labels, logits)
    assert set(scores) == metrics.available_metrics(3, labels.ndim == 2)
    assert all(np.isnan(value) for value in scores.values())


def test_per_label_scores_of_numberless_logits_keep_the_support() -> None:
    table = metrics.per_label_metrics(np.array([0, 1, 1]), np.full((3, 2), np.nan), ["a", "b"])
    assert table["b"]["support"] == 2
    assert np.isnan(table["b"]["f1"])


@pytest.mark.parametrize(
    ("labels", "logits", "words"),
    [
        (np.empty(0, dtype=int), np.empty((0, 3)), "no texts"),
        (np.empty((0, 3), dtype=int), np.empty((0, 3)), "no texts"),
        (np.array([0, 3]), np.zeros((2, 3)), "expected 0 to 2"),
        (np.array([-1, 0]), np.zeros((2, 3)), "from -1 to 0"),
        (np.array([0]), np.zeros((2, 3)), r"\(1,\), \(2, 3\)"),
        (np.array([[0, 2]]), np.zeros((1, 2)), "must be 0 or 1"),
    ],
)
def test_unfit_arrays_are_refused_with_the_reason(labels: NDArray[Any], logits: NDArray[Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        metrics.evaluate(labels, logits)


def test_better_knows_the_direction_and_never_prefers_nan() -> None:
    assert metrics.is_better("f1_macro", 0.6, 0.5) and not metrics.is_better("f1_macro", 0.5, 0.5)
    assert metrics.is_better("log_loss", 0.5, 0.6) and not metrics.is_better("ece", 0.6, 0.5)
    assert metrics.is_better("accuracy", 0.1, float("nan"))
    assert not metrics.is_better("accuracy", float("nan"), 0.1)


def test_metrics_that_do_not_exist_for_the_labels_are_refused_with_what_to_type() -> None:
    with pytest.raises(RecipeError, match="exact_match"):
        metrics.check_metric("accuracy", 4, multi_label=True)
    with pytest.raises(RecipeError, match="f1_macro"):
        metrics.check_metric("f1", 3, multi_label=False)
    metrics.check_metric("f1", 2, multi_label=False)


def test_majority_share_counts_whole_sets_of_labels() -> None:
    assert metrics.majority_share(np.array([0, 1, 1, 2])) == 0.5
    assert metrics.majority_share(np.array([[0, 1], [0, 1], [1, 1], [1, 0]])) == 0.5


def test_importing_metrics_loads_nothing_heavy() -> None:
    code = "import sys, fleetune.metrics; print(*{'torch', 'sklearn', 'pandas', 'scipy', 'altair'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == ""
