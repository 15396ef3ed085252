"""Where texts may have several labels: from which probability each label is given.

Thresholds are tuned for each label's F1 on validation, by this rule:

- Of all thresholds between the label's probabilities, and below them all, one of the highest F1 is taken. Of equals
  it is one that decides as 0.5 does, or the nearest to 0.5; it lies in the middle between two probabilities.
- A label's own optimum is as uncertain as its positives are few. It is drawn, in log-odds, towards the one threshold
  that is best for all labels together: n positives count against `PRIOR_POSITIVES`. That common threshold is drawn
  towards 0.5 in the same way.
- A label without positives on validation keeps 0.5.

Thresholds fit the texts they were tuned on better than others. So validation is judged *cross-fitted*: its texts are
dealt into folds, and a text's labels are decided by thresholds tuned on the other folds. All those decisions are
scored together, as Forman and Scholz (2010, SIGKDD Explorations 12) advise for F1.

`threshold_for` answers another question: from which probability on are so many of a label's texts right, or found? It
keeps what is wished on the texts it is tuned on; other texts have to tell whether it holds.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fleetune.metrics import sigmoid
from fleetune.runtime import random_stream

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
Rule = Literal["tuned"] | float

NEUTRAL = 0.5
FOLDS = 5
PRIOR_POSITIVES = 5


def tuned_thresholds(labels: NDArray[Any], probabilities: NDArray[Any]) -> FloatArray:
    """Returns the threshold of each label `(num_labels,)`, tuned on these texts by the module's rule.

    Args:
        labels: 0/1 `(texts, num_labels)`.
        probabilities: `(texts, num_labels)`; where one is not a number all thresholds are 0.5.
    """
    truth, scores = np.asarray(labels).astype(np.bool_), np.asarray(probabilities, dtype=np.float64)
    positives = truth.sum(axis=0)
    if not positives.any() or not np.isfinite(scores).all():
        return np.full(scores.shape[1], NEUTRAL)
    common = _drawn(best_threshold(truth.ravel(), scores.ravel()), NEUTRAL, int(positives.sum()))
    return np.array(
        [
            _drawn(best_threshold(truth[:, label], scores[:, label]), common, int(count)) if count else NEUTRAL
            for label, count in enumerate(positives)
        ]
    )


def best_threshold(truth: NDArray[np.bool_], scores: FloatArray) -> float:
    """Returns the threshold of the highest F1 on these texts; of equals the one nearest to 0.5.

    Args:
        truth: `(texts,)`, of which at least one is true.
        scores: Probabilities `(texts,)`.
    """
    order = np.argsort(-scores, kind="stable")
    ordered = scores[order]
    given = np.arange(1, len(scores) + 1)
    f1 = 2.0 * np.cumsum(truth[order]) / (given + truth.sum())
    # A threshold gives a label to all texts down to some probability: to all of one probability, or none of them.
    upper, lower = ordered, np.append(ordered[1:], 0.0)
    f1[:-1][lower[:-1] == upper[:-1]] = -1.0
    best = np.flatnonzero(f1 == f1.max())
    upper, lower = upper[best], lower[best]
    if ((lower < NEUTRAL) & (upper >= NEUTRAL)).any():
        return NEUTRAL
    nearest = int(np.minimum(abs(lower - NEUTRAL), abs(upper - NEUTRAL)).argmin())
    middle = float((lower[nearest] + upper[nearest]) / 2.0)
    return middle if middle > lower[nearest] else float(upper[nearest])


def threshold_for(
    truth: NDArray[Any], scores: NDArray[Any], *, precision: float | None = None, recall: float | None = None
) -> float | None:
    """Returns the threshold that keeps a wished precision or recall on these texts; None where there is none.

    With a precision, of all thresholds that reach it the one of the highest recall, and of equals the highest. One
    that gives the label to no text has no precision. With a recall, the highest threshold that reaches it. It lies in
    the middle between two probabilities.

    Args:
        truth: 0/1 `(texts,)`; without a 1 there is none to find.
        scores: Probabilities `(texts,)`.
        precision: Lowest share of right ones among the texts given the label.
        recall: Lowest share of the label's texts that are given it.

    Raises:
        ValueError: Unless one of precision and recall is given.
    """
    if (precision is None) == (recall is None):
        raise ValueError("give a precision or a recall, and not both")
    positive, values = np.asarray(truth).astype(np.bool_), np.asarray(scores, dtype=np.float64)
    if not positive.any() or not np.isfinite(values).all():
        return None
    order = np.argsort(-values, kind="stable")
    upper, lower = values[order], np.append(values[order][1:], 0.0)
    hits, given = np.cumsum(positive[order]), np.arange(1, len(values) + 1)
    whole = np.append(lower[:-1] < upper[:-1], True)
    reached = hits / given >= precision if precision is not None else hits / positive.sum() >= recall
    fitting = np.flatnonzero(whole & reached & (hits > 0))
    if not len(fitting):
        return None
    chosen = fitting[np.argmax(hits[fitting])] if precision is not None else fitting[0]
    middle = float((lower[chosen] + upper[chosen]) / 2.0)
    return middle if middle > lower[chosen] else float(upper[chosen])


def _drawn(threshold: float, towards: float, positives: int) -> float:
    weight = positives / (positives + PRIOR_POSITIVES)
    return float(sigmoid(np.array(weight * _log_odds(threshold) + (1.0 - weight) * _log_odds(towards))))


def _log_odds(probability: float) -> float:
    within = min(max(probability, 1e-12), 1.0 - 1e-12)
    return float(np.log(within / (1.0 - within)))


def fold_of(texts: int, folds: int = FOLDS) -> IntArray:
    """Returns the fold `(texts,)` of each text: even in size, and the same for the same number of texts."""
    return np.asarray(random_stream("folds", texts, folds).permutation(texts) % folds, dtype=np.int64)


def cross_fitted_thresholds(labels: NDArray[Any], probabilities: NDArray[Any], folds: int = FOLDS) -> FloatArray:
    """Returns each text's thresholds `(texts, num_labels)`, tuned on the texts of the other folds.

    Args:
        labels: 0/1 `(texts, num_labels)`.
        probabilities: `(texts, num_labels)`.
        folds: Number of folds; no more than there are texts. A single text is judged by 0.5.
    """
    truth, scores = np.asarray(labels), np.asarray(probabilities)
    folds = min(folds, len(truth))
    result = np.full(scores.shape, NEUTRAL, dtype=np.float64)
    own = fold_of(len(truth), max(folds, 1))
    for fold in range(folds if folds > 1 else 0):
        result[own == fold] = tuned_thresholds(truth[own != fold], scores[own != fold])
    return result


def final_thresholds(
    rule: Rule, num_labels: int, validation: tuple[NDArray[Any], NDArray[Any]] | None = None
) -> FloatArray:
    """Returns the thresholds `(num_labels,)` that a trained classifier decides by.

    Args:
        rule: A number for all labels, or `tuned`.
        num_labels: Number of labels.
        validation: Labels 0/1 and logits, both `(texts, num_labels)`; without any, `tuned` is 0.5.
    """
    if rule != "tuned":
        return np.full(num_labels, float(rule))
    if validation is None or not len(validation[0]):
        return np.full(num_labels, NEUTRAL)
    labels, logits = validation
    return tuned_thresholds(labels, sigmoid(logits))


def validation_thresholds(rule: Rule, labels: NDArray[Any], logits: NDArray[Any]) -> FloatArray | None:
    """Returns the thresholds `(texts, num_labels)` by which validation is judged; None for single-label texts.

    Args:
        rule: A number for all labels, or `tuned`.
        labels: Class indices `(texts,)`, or 0/1 `(texts, num_labels)`.
        logits: `(texts, num_labels)`.
    """
    if np.ndim(labels) != 2:
        return None
    return (
        cross_fitted_thresholds(labels, sigmoid(logits)) if rule == "tuned" else np.full(np.shape(logits), float(rule))
    )
