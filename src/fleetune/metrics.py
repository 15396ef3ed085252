"""Scores of predictions: pure functions on arrays, with the values that scikit-learn gives.

Conventions, where the field has more than one:

- A score whose denominator is zero is 0 (scikit-learn's `zero_division=0`).
- Single-label macro and weighted averages run over the labels that occur in truth or predictions, as
  scikit-learn's do by default; multi-label averages run over every label.
- A score that is not defined (ROC-AUC where a class is absent) is nan, never an exception. Multi-label
  ROC-AUC is the mean over the labels that have both values.
- Logits or probabilities that are not numbers make every score nan.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from fleetune.errors import RecipeError

MetricName = Literal[
    "accuracy", "exact_match",
    "f1", "f1_macro", "f1_micro", "f1_weighted",
    "precision", "precision_macro", "precision_micro", "precision_weighted",
    "recall", "recall_macro", "recall_micro", "recall_weighted",
    "matthews", "roc_auc", "log_loss", "ece", "loss",
]  # fmt: skip

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]

METRIC_NAMES: tuple[str, ...] = get_args(MetricName)
MINIMISED: frozenset[str] = frozenset({"log_loss", "ece", "loss"})
BINARY_ONLY: frozenset[str] = frozenset({"f1", "precision", "recall"})
CALIBRATION_BINS = 15


def is_better(name: str, new: float, old: float) -> bool:
    """Returns whether `new` is a better value of the metric `name` than `old`; nan is worse than any number."""
    if np.isnan(new):
        return False
    if np.isnan(old):
        return True
    return new < old if name in MINIMISED else new > old


def available_metrics(num_labels: int, multi_label: bool) -> frozenset[str]:
    """Returns the names that `evaluate` computes for such labels."""
    names = set(METRIC_NAMES)
    if multi_label:
        return frozenset(names - {"accuracy"} - BINARY_ONLY)
    names -= {"exact_match"}
    return frozenset(names if num_labels == 2 else names - BINARY_ONLY)


def check_metric(name: str, num_labels: int, multi_label: bool) -> None:
    """Raises RecipeError where the metric `name` does not exist for such labels, and names what to use instead."""
    if name in available_metrics(num_labels, multi_label):
        return
    labels = "multi-label data" if multi_label else f"{num_labels} classes"
    instead = {"accuracy": "exact_match", "exact_match": "accuracy"}.get(name, f"{name}_macro")
    raise RecipeError(f"metric '{name}' is not defined for {labels}.\nType: metric = \"{instead}\"")


def softmax(logits: NDArray[Any]) -> FloatArray:
    """Returns probabilities `(texts, num_labels)` that sum to 1 in each row, computed in float64."""
    return np.exp(_log_softmax(logits))


def sigmoid(logits: NDArray[Any]) -> FloatArray:
    """Returns each logit's own probability `(texts, num_labels)`, computed in float64."""
    wide = np.asarray(logits, dtype=np.float64)
    with np.errstate(invalid="ignore"):
        small = np.exp(-np.abs(wide))
    return np.asarray(np.where(wide >= 0, 1.0, small) / (1.0 + small))


def probabilities_of(logits: NDArray[Any], multi_label: bool) -> FloatArray:
    """Returns `sigmoid(logits)` for multi-label outputs, else `softmax(logits)`."""
    return sigmoid(logits) if multi_label else softmax(logits)


def predicted_classes(probabilities: NDArray[Any]) -> IntArray:
    """Returns the class of the highest probability `(texts,)`; the first of equals."""
    return np.asarray(np.argmax(probabilities, axis=1), dtype=np.int64)


def predicted_sets(probabilities: NDArray[Any], thresholds: NDArray[Any] | float | None = None) -> IntArray:
    """Returns 0/1 `(texts, num_labels)`: 1 where a label's probability reaches its threshold (0.5 if absent)."""
    return np.asarray(np.asarray(probabilities) >= (0.5 if thresholds is None else thresholds), dtype=np.int64)


def evaluate(
    labels: NDArray[Any], logits: NDArray[Any], thresholds: NDArray[Any] | float | None = None
) -> dict[str, float]:
    """Returns every metric by name for logits `(texts, num_labels)`.

    Args:
        labels: Class indices `(texts,)`, or 0/1 `(texts, num_labels)` where multi-label.
        logits: The classifier's outputs; softmax (two classes included) or, where multi-label, sigmoid is
            applied in float64.
        thresholds: Multi-label decision thresholds `(num_labels,)`, or `(texts, num_labels)`; 0.5 where absent.

    Raises:
        ValueError: If there are no texts, or the shapes or label values do not fit each other.
    """
    if np.asarray(labels).ndim == 2:
        scores = multi_label_metrics(labels, sigmoid(logits), thresholds)
        return scores | {"loss": _binary_cross_entropy(labels, logits)}
    scores = single_label_metrics(labels, softmax(logits))
    return scores | {"loss": _cross_entropy(labels, logits)}


def single_label_metrics(labels: NDArray[Any], probabilities: NDArray[Any]) -> dict[str, float]:
    """Returns the metrics of single-label predictions by name.

    `f1`, `precision` and `recall` (of the second label) are there only where there are two labels.

    Args:
        labels: Class indices `(texts,)`.
        probabilities: `(texts, num_labels)`, rows summing to 1.

    Raises:
        ValueError: If there are no texts, or the shapes or label values do not fit each other.
    """
    truth, scores = _single_label_inputs(labels, probabilities)
    num_labels = scores.shape[1]
    if not np.isfinite(scores).all():
        return _all_nan(num_labels, multi_label=False)
    predictions = predicted_classes(scores)
    matrix = confusion_matrix(truth, predictions, num_labels)
    hits, predicted, support = np.diag(matrix), matrix.sum(axis=0), matrix.sum(axis=1)
    result = _averages(hits, predicted, support, counted=(predicted + support) > 0)
    result["accuracy"] = float(hits.sum() / len(truth))
    result["matthews"] = _matthews(matrix)
    result["roc_auc"] = _single_label_roc_auc(truth, scores)
    result["log_loss"] = _log_loss(truth, scores)
    result["ece"] = expected_calibration_error(scores.max(axis=1), predictions == truth)
    if num_labels == 2:
        result |= {name: float(values[1]) for name, values in _per_label(hits, predicted, support).items()}
    return result


def multi_label_metrics(
    labels: NDArray[Any], probabilities: NDArray[Any], thresholds: NDArray[Any] | float | None = None
) -> dict[str, float]:
    """Returns the metrics of multi-label predictions by name.

    `exact_match` is the share of texts whose whole set of labels is right. `matthews`, `log_loss` and `ece`
    are means over the labels of their binary values; `ece` bins each label's own probability.

    Args:
        labels: 0/1 `(texts, num_labels)`.
        probabilities: `(texts, num_labels)`, each label's own.
        thresholds: A label is predicted where its probability reaches this, `(num_labels,)`; 0.5 where absent.

    Raises:
        ValueError: If there are no texts, or the shapes or label values do not fit each other.
    """
    truth, scores = _multi_label_inputs(labels, probabilities)
    if not np.isfinite(scores).all():
        return _all_nan(scores.shape[1], multi_label=True)
    predictions = predicted_sets(scores, thresholds)
    hits, predicted, support = (truth & predictions).sum(axis=0), predictions.sum(axis=0), truth.sum(axis=0)
    result = _averages(hits, predicted, support, counted=np.ones(scores.shape[1], dtype=np.bool_))
    result["exact_match"] = float((truth == predictions).all(axis=1).mean())
    result["matthews"] = float(np.mean([_matthews(two_by_two) for two_by_two in confusion_matrix(truth, predictions)]))
    areas = _multi_label_roc_auc(truth, scores)
    result["roc_auc"] = float(np.nanmean(areas)) if np.isfinite(areas).any() else float("nan")
    epsilon = np.finfo(np.float64).eps
    likelihood = np.where(truth == 1, scores, 1.0 - scores)
    result["log_loss"] = float(-np.log(np.clip(likelihood, epsilon, 1.0 - epsilon)).mean())
    result["ece"] = float(
        np.mean([expected_calibration_error(scores[:, k], truth[:, k] == 1) for k in range(scores.shape[1])])
    )
    return result


def per_label_metrics(
    labels: NDArray[Any],
    probabilities: NDArray[Any],
    label_names: list[str],
    thresholds: NDArray[Any] | float | None = None,
) -> dict[str, dict[str, float]]:
    """Returns, by label name, `precision`, `recall`, `f1`, `roc_auc`, `support` and `predicted`.

    `support` and `predicted` are numbers of texts; `roc_auc` is one label against the rest. Where
    probabilities are not numbers, all but `support` is nan.

    Raises:
        ValueError: If there are no texts, or the shapes or label values do not fit each other.
    """
    multi_label = np.asarray(labels).ndim == 2
    truth, scores = (_multi_label_inputs if multi_label else _single_label_inputs)(labels, probabilities)
    num_labels = scores.shape[1]
    if len(label_names) != num_labels:
        raise ValueError(f"{len(label_names)} label names for {num_labels} columns of probabilities")
    indicators = truth if multi_label else (truth[:, None] == np.arange(num_labels)).astype(np.int64)
    columns: dict[str, NDArray[Any]]
    if np.isfinite(scores).all():
        chosen = (
            predicted_sets(scores, thresholds)
            if multi_label
            else (predicted_classes(scores)[:, None] == np.arange(num_labels)).astype(np.int64)
        )
        hits, predicted, support = (indicators & chosen).sum(axis=0), chosen.sum(axis=0), indicators.sum(axis=0)
        columns = _per_label(hits, predicted, support) | {"roc_auc": _multi_label_roc_auc(indicators, scores)}
        columns["predicted"] = predicted
    else:
        names = ("precision", "recall", "f1", "roc_auc", "predicted")
        columns = {name: np.full(num_labels, np.nan) for name in names}
    columns["support"] = indicators.sum(axis=0)
    return {
        name: {key: float(values[index]) for key, values in columns.items()} for index, name in enumerate(label_names)
    }


def confusion_matrix(labels: NDArray[Any], predictions: NDArray[Any], num_labels: int | None = None) -> IntArray:
    """Returns numbers of texts `(num_labels, num_labels)`: rows are true labels, columns predicted ones.

    Where multi-label, `(num_labels, 2, 2)`: one matrix a label, the absent value first.

    Args:
        labels: Class indices `(texts,)`, or 0/1 `(texts, num_labels)`.
        predictions: Of the same shape.
        num_labels: Number of classes; where absent the highest index plus 1. Ignored where multi-label.
    """
    truth, chosen = np.asarray(labels, dtype=np.int64), np.asarray(predictions, dtype=np.int64)
    if truth.shape != chosen.shape:
        raise ValueError(f"labels have shape {truth.shape}, predictions {chosen.shape}")
    if truth.ndim == 2:
        size = truth.shape[1]
        cells = np.arange(size) * 4 + truth * 2 + chosen
        return np.bincount(cells.ravel(), minlength=size * 4).reshape(size, 2, 2).astype(np.int64)
    size = int(max(truth.max(initial=-1), chosen.max(initial=-1))) + 1 if num_labels is None else num_labels
    return np.bincount(truth * size + chosen, minlength=size * size).reshape(size, size).astype(np.int64)


def calibration_bins(
    confidences: NDArray[Any], correct: NDArray[Any], bins: int = CALIBRATION_BINS
) -> dict[str, FloatArray]:
    """Returns `count`, mean `confidence` and share `correct` of each of `bins` equal-width bins `(bins,)`.

    Bin b holds confidences in (b/bins, (b+1)/bins], the first one 0 too. Empty bins have nan means.
    """
    values, outcomes = np.asarray(confidences, dtype=np.float64), np.asarray(correct, dtype=np.float64)
    edges = np.linspace(0.0, 1.0, bins + 1)
    index = np.clip(np.searchsorted(edges, values, side="left") - 1, 0, bins - 1)
    count = np.bincount(index, minlength=bins).astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        confidence = np.bincount(index, weights=values, minlength=bins) / count
        share = np.bincount(index, weights=outcomes, minlength=bins) / count
    return {"count": count, "confidence": confidence, "correct": share}


def expected_calibration_error(confidences: NDArray[Any], correct: NDArray[Any], bins: int = CALIBRATION_BINS) -> float:
    """Returns the mean distance of confidence and correctness over equal-width bins, weighted by their texts.

    Source: Guo et al., 2017, arXiv:1706.04599, with 15 bins on the top label's confidence.
    """
    table = calibration_bins(confidences, correct, bins)
    filled = table["count"] > 0
    gaps = np.abs(table["confidence"][filled] - table["correct"][filled])
    return float((gaps * table["count"][filled]).sum() / table["count"].sum())


def majority_share(labels: NDArray[Any]) -> float:
    """Returns the share of texts that carry the most frequent class, or the most frequent whole set of labels."""
    values = np.asarray(labels)
    if len(values) == 0:
        raise ValueError("no texts: the majority share needs at least one label")
    return float(np.unique(values, axis=0, return_counts=True)[1].max() / len(values))


def _single_label_inputs(labels: NDArray[Any], probabilities: NDArray[Any]) -> tuple[IntArray, FloatArray]:
    truth, scores = np.asarray(labels), np.asarray(probabilities, dtype=np.float64)
    if truth.ndim != 1 or scores.ndim != 2 or len(truth) != len(scores):
        raise ValueError(f"expected labels (texts,) and scores (texts, num_labels); got {truth.shape}, {scores.shape}")
    if len(truth) == 0:
        raise ValueError("no texts: metrics need at least one label and its scores")
    if truth.min() < 0 or truth.max() >= scores.shape[1]:
        raise ValueError(f"labels run from {truth.min()} to {truth.max()}; expected 0 to {scores.shape[1] - 1}")
    return truth.astype(np.int64), scores


def _multi_label_inputs(labels: NDArray[Any], probabilities: NDArray[Any]) -> tuple[IntArray, FloatArray]:
    truth, scores = np.asarray(labels), np.asarray(probabilities, dtype=np.float64)
    if truth.ndim != 2 or truth.shape != scores.shape:
        raise ValueError(f"expected labels and scores (texts, num_labels); got {truth.shape}, {scores.shape}")
    if truth.size == 0:
        raise ValueError("no texts: metrics need at least one row of labels and its scores")
    if not np.isin(truth, (0, 1)).all():
        raise ValueError("multi-label labels must be 0 or 1")
    return truth.astype(np.int64), scores


def _all_nan(num_labels: int, multi_label: bool) -> dict[str, float]:
    return dict.fromkeys(available_metrics(num_labels, multi_label) - {"loss"}, float("nan"))


def _ratio(numerator: NDArray[Any], denominator: NDArray[Any]) -> FloatArray:
    result = np.zeros(np.shape(numerator), dtype=np.float64)
    np.divide(numerator, denominator, out=result, where=np.asarray(denominator) > 0)
    return result


def _per_label(hits: NDArray[Any], predicted: NDArray[Any], support: NDArray[Any]) -> dict[str, NDArray[Any]]:
    return {
        "precision": _ratio(hits, predicted),
        "recall": _ratio(hits, support),
        "f1": _ratio(2 * hits, predicted + support),
    }


def _averages(
    hits: NDArray[Any], predicted: NDArray[Any], support: NDArray[Any], counted: BoolArray
) -> dict[str, float]:
    result: dict[str, float] = {}
    totals = _per_label(hits.sum(keepdims=True), predicted.sum(keepdims=True), support.sum(keepdims=True))
    weights = _ratio(support, np.full(support.shape, support.sum()))
    for name, values in _per_label(hits, predicted, support).items():
        result[f"{name}_micro"] = float(totals[name][0])
        result[f"{name}_macro"] = float(values[counted].mean())
        result[f"{name}_weighted"] = float((values * weights).sum())
    return result


def _matthews(matrix: NDArray[Any]) -> float:
    """Returns the correlation of truth and prediction, 0 where one of them is constant (Gorodkin, 2004)."""
    counts = matrix.astype(np.float64)
    rows, columns, total = counts.sum(axis=1), counts.sum(axis=0), counts.sum()
    covariance = np.trace(counts) * total - rows @ columns
    spread = (total**2 - rows @ rows) * (total**2 - columns @ columns)
    return float(covariance / np.sqrt(spread)) if spread > 0 else 0.0


def _roc_auc(positive: BoolArray, scores: FloatArray) -> float:
    """Returns the area under the ROC curve by the rank sum, ties counting half; nan without both values."""
    positives = int(positive.sum())
    negatives = len(positive) - positives
    if positives == 0 or negatives == 0:
        return float("nan")
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    average_rank = np.cumsum(counts) - (counts - 1) / 2.0
    rank_sum = average_rank[inverse][positive].sum()
    return float((rank_sum - positives * (positives + 1) / 2.0) / (positives * negatives))


def _single_label_roc_auc(truth: IntArray, scores: FloatArray) -> float:
    if scores.shape[1] == 2:
        return _roc_auc(truth == 1, scores[:, 1])
    return float(np.mean([_roc_auc(truth == label, scores[:, label]) for label in range(scores.shape[1])]))


def _multi_label_roc_auc(truth: IntArray, scores: FloatArray) -> FloatArray:
    return np.array([_roc_auc(truth[:, label] == 1, scores[:, label]) for label in range(scores.shape[1])])


def _log_loss(truth: IntArray, scores: FloatArray) -> float:
    epsilon = np.finfo(np.float64).eps
    likelihood = np.clip(scores[np.arange(len(truth)), truth], epsilon, 1.0 - epsilon)
    return float(-np.log(likelihood).mean())


def _log_softmax(logits: NDArray[Any]) -> FloatArray:
    wide = np.asarray(logits, dtype=np.float64)
    with np.errstate(invalid="ignore"):
        shifted = wide - wide.max(axis=-1, keepdims=True)
        return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))


def _cross_entropy(labels: NDArray[Any], logits: NDArray[Any]) -> float:
    return float(-_log_softmax(logits)[np.arange(len(labels)), np.asarray(labels, dtype=np.int64)].mean())


def _binary_cross_entropy(labels: NDArray[Any], logits: NDArray[Any]) -> float:
    wide = np.asarray(logits, dtype=np.float64)
    with np.errstate(invalid="ignore"):
        return float((np.logaddexp(0.0, wide) - wide * np.asarray(labels)).mean())
