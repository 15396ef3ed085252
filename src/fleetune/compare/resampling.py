"""Scores under texts drawn anew: what a metric would have been on other texts of the same kind.

The bootstrap over texts draws as many texts as there are, with replacement, and gives a draw as how often it has each
text. Every trial on the same data sees the same draws, so that what makes a text hard for all of them cancels in their
difference. Draws depend on the number of texts alone, and on nothing random: a number of a report comes out again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fleetune.compare.result import TrialResult
from fleetune.metrics import CALIBRATION_BINS
from fleetune.runtime import random_stream

FloatArray = NDArray[np.float64]
Score = Callable[[FloatArray], FloatArray]
"""Takes draws `(draws, texts)` to scores `(draws,)`."""

DRAWS = 1_000
MOST_NUMBERS = 4_000_000
"""Of one block of draws, so that a large test split needs no more memory than a small one."""
MOST_BYTES = 256 << 20
"""Of what trials are scored by that see a block together; for more trials the blocks are drawn again."""
MANY_TEXTS = 20_000
"""From which on a text's label and decision are kept as one small number."""
EPSILON = float(np.finfo(np.float64).eps)


def draws_of(texts: int, draws: int = DRAWS) -> Iterator[FloatArray]:
    """Yields blocks `(some draws, texts)` of how often each text is drawn; each row adds up to `texts`."""
    stream = random_stream("texts", texts)
    block = max(1, MOST_NUMBERS // max(texts, 1))
    for start in range(0, draws, block):
        size = min(block, draws - start)
        yield stream.multinomial(texts, np.full(texts, 1.0 / texts), size=size).astype(np.float64)


@dataclass(frozen=True)
class KeptDraws:
    """Blocks of draws that are gone through several times, kept in as few bytes as their numbers need.

    Attributes:
        blocks: `(some draws, texts)` of how often each text is drawn.
    """

    blocks: tuple[NDArray[Any], ...]

    @property
    def texts(self) -> int:
        """How many texts they are of."""
        return int(self.blocks[0].shape[1])

    def __iter__(self) -> Iterator[FloatArray]:
        return (block.astype(np.float64) for block in self.blocks)

    def of(self, part: NDArray[np.int64] | None) -> KeptDraws:
        """Returns the same draws of some of the texts; of all where None."""
        return self if part is None else KeptDraws(tuple(block[:, part] for block in self.blocks))


def kept_draws(texts: int, draws: int) -> KeptDraws:
    """Returns the blocks of `draws_of`."""
    blocks = draws_of(texts, draws)
    return KeptDraws(tuple(block.astype(np.min_scalar_type(int(block.max()))) for block in blocks))


def resampled(trials: Sequence[TrialResult], split: str, metric: str, draws: int = DRAWS) -> FloatArray:
    """Returns each trial's metric on each draw of the split's texts `(trials, draws)`.

    Args:
        trials: Trials on the same data, all with predictions on `split` of the same texts.
        split: Which texts.
        metric: Name of the metric.
        draws: How many.
    """
    if not trials:
        return np.empty((0, draws))
    texts = len(trials[0].labels(split))
    together = max(1, MOST_BYTES // max(1, texts * _bytes_of_a_text(trials[0], metric, texts)))
    parts = []
    for start in range(0, len(trials), together):
        scores = [score_of(trial, split, metric) for trial in trials[start : start + together]]
        blocks = [np.stack([score(block) for score in scores]) for block in draws_of(texts, draws)]
        parts.append(np.concatenate(blocks, axis=1))
    return np.concatenate(parts)


def _bytes_of_a_text(trial: TrialResult, metric: str, texts: int) -> int:
    """Returns what the score of one trial keeps of each text, at most."""
    outputs = len(trial.label_names)
    match metric:
        case "accuracy" | "exact_match" | "loss" | "log_loss":
            return 8
        case "ece":
            return 8 * CALIBRATION_BINS * (outputs if trial.multi_label else 1)
        case "roc_auc":
            return 24 * outputs
    if trial.multi_label:
        return 24 * outputs
    return 4 if _has_many(texts, outputs) else 48


def draws_by_trial(trials: Sequence[TrialResult], split: str, metric: str) -> dict[str, FloatArray]:
    """Returns by trial id its metric on texts drawn anew `(draws,)`; trials with as many texts see the same draws."""
    by_size: dict[int, list[TrialResult]] = {}
    for trial in trials:
        by_size.setdefault(len(trial.labels(split)), []).append(trial)
    return {
        trial.id: drawn
        for members in by_size.values()
        for trial, drawn in zip(members, resampled(members, split, metric), strict=True)
    }


def score_of(trial: TrialResult, split: str, metric: str, part: NDArray[np.int64] | None = None) -> Score:
    """Returns the metric of `trial` as a function of draws of the split's texts, or of those numbered in `part`."""
    labels, logits = trial.predictions[split]
    probabilities = trial.probabilities(split)
    chosen = trial.decisions(split)
    if part is not None:
        labels, logits, probabilities, chosen = labels[part], logits[part], probabilities[part], chosen[part]
    if not np.isfinite(probabilities).all():
        return lambda draws: np.full(len(draws), np.nan)
    if trial.multi_label:
        return _multi_label(
            labels.astype(np.float64), chosen.astype(np.float64), probabilities, logits.astype(np.float64), metric
        )
    return _single_label(labels.astype(np.int64), chosen, probabilities, logits.astype(np.float64), metric)


def _single_label(
    truth: NDArray[np.int64], chosen: NDArray[np.int64], scores: FloatArray, logits: FloatArray, metric: str
) -> Score:
    right = (truth == chosen).astype(np.float64)
    rows, labels = np.arange(len(truth)), scores.shape[1]
    match metric:
        case "accuracy":
            return _mean_of(right)
        case "loss":
            return _mean_of(np.logaddexp.reduce(logits, axis=1) - logits[rows, truth])
        case "log_loss":
            return _mean_of(-np.log(np.clip(scores[rows, truth], EPSILON, 1.0 - EPSILON)))
        case "ece":
            return _calibration_error([(scores.max(axis=1), right)])
        case "roc_auc" if labels == 2:
            return _area(truth == 1, scores[:, 1])
        case "roc_auc":
            areas = [_area(truth == label, scores[:, label]) for label in range(labels)]
            return lambda draws: np.asarray(np.mean([area(draws) for area in areas], axis=0))
    sums = _label_sums(truth, chosen, labels)
    return lambda draws: _of_counts(*sums(draws), metric, over_all_labels=False)


def _multi_label(truth: FloatArray, chosen: FloatArray, scores: FloatArray, logits: FloatArray, metric: str) -> Score:
    labels = range(truth.shape[1])
    match metric:
        case "exact_match":
            return _mean_of((truth == chosen).all(axis=1).astype(np.float64))
        case "loss":
            return _mean_of((np.logaddexp(0.0, logits) - logits * truth).mean(axis=1))
        case "log_loss":
            likelihood = np.clip(np.where(truth == 1, scores, 1.0 - scores), EPSILON, 1.0 - EPSILON)
            return _mean_of(-np.log(likelihood).mean(axis=1))
        case "ece":
            return _calibration_error([(scores[:, label], truth[:, label]) for label in labels])
        case "roc_auc":
            return _mean_area([_area(truth[:, label] == 1, scores[:, label]) for label in labels])
        case "matthews":
            return lambda draws: _mean_binary_matthews(draws, truth, chosen)
    hits = truth * chosen
    return lambda draws: _of_counts(draws @ hits, draws @ chosen, draws @ truth, metric, over_all_labels=True)


def _mean_of(values: FloatArray) -> Score:
    return lambda draws: np.asarray(draws @ values / draws.sum(axis=1))


def _label_sums(
    truth: NDArray[np.int64], chosen: NDArray[np.int64], labels: int
) -> Callable[[FloatArray], tuple[FloatArray, FloatArray, FloatArray]]:
    """Returns what takes draws to each label's hits, predictions and texts `(draws, labels)`."""
    if _has_many(len(truth), labels):
        return _label_sums_of_many(truth, chosen, labels)
    from scipy.sparse import csr_array

    texts = np.arange(len(truth))
    right = truth == chosen
    places = np.concatenate([truth[right], labels + chosen, 2 * labels + truth])
    owners = np.concatenate([texts[right], texts, texts])
    table = csr_array((np.ones(len(places)), (places, owners)), shape=(3 * labels, len(truth)))

    def sums(draws: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
        counts = np.asarray(table @ draws.T).T
        return counts[:, :labels], counts[:, labels : 2 * labels], counts[:, 2 * labels :]

    return sums


def _has_many(texts: int, labels: int) -> bool:
    return texts > max(MANY_TEXTS, labels * labels)


def _label_sums_of_many(
    truth: NDArray[np.int64], chosen: NDArray[np.int64], labels: int
) -> Callable[[FloatArray], tuple[FloatArray, FloatArray, FloatArray]]:
    """Returns the same numbers as `_label_sums`, from a confusion matrix of each draw: a few bytes a text are kept."""
    cells = (truth * labels + chosen).astype(np.min_scalar_type(labels * labels))

    def sums(draws: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
        places = cells.astype(np.intp)
        counted = [np.bincount(places, weights=draw, minlength=labels * labels) for draw in draws]
        matrices = np.stack(counted).reshape(len(draws), labels, labels)
        return np.diagonal(matrices, axis1=1, axis2=2), matrices.sum(axis=1), matrices.sum(axis=2)

    return sums


def _of_counts(
    hits: FloatArray, predicted: FloatArray, support: FloatArray, metric: str, over_all_labels: bool
) -> FloatArray:
    """Returns a metric that follows from each label's counts `(draws, labels)`."""
    if metric == "matthews":
        return _matthews(hits, predicted, support)
    base, _, average = metric.partition("_")
    if average == "micro":
        hits, predicted, support = (counts.sum(axis=1, keepdims=True) for counts in (hits, predicted, support))
    values = _by_label(hits, predicted, support)[base]
    match average:
        case "":
            return values[:, 1]
        case "micro":
            return values[:, 0]
        case "weighted":
            return _ratio((values * support).sum(axis=1), support.sum(axis=1))
    counted = np.ones_like(values) if over_all_labels else ((predicted + support) > 0).astype(np.float64)
    return _ratio((values * counted).sum(axis=1), counted.sum(axis=1))


def _by_label(hits: FloatArray, predicted: FloatArray, support: FloatArray) -> dict[str, FloatArray]:
    return {
        "precision": _ratio(hits, predicted),
        "recall": _ratio(hits, support),
        "f1": _ratio(2.0 * hits, predicted + support),
    }


def _matthews(hits: FloatArray, predicted: FloatArray, support: FloatArray) -> FloatArray:
    total = support.sum(axis=1)
    covariance = hits.sum(axis=1) * total - (predicted * support).sum(axis=1)
    spread = (total**2 - (support**2).sum(axis=1)) * (total**2 - (predicted**2).sum(axis=1))
    return _ratio(covariance, np.sqrt(np.maximum(spread, 0.0)))


def _mean_binary_matthews(draws: FloatArray, truth: FloatArray, chosen: FloatArray) -> FloatArray:
    total = draws.sum(axis=1, keepdims=True)
    hits, predicted, support = draws @ (truth * chosen), draws @ chosen, draws @ truth
    covariance = hits * total - predicted * support
    spread = support * (total - support) * predicted * (total - predicted)
    return np.asarray(_ratio(covariance, np.sqrt(np.maximum(spread, 0.0))).mean(axis=1))


def _calibration_error(outputs: Sequence[tuple[FloatArray, FloatArray]]) -> Score:
    """Returns the mean over `outputs` (confidences and outcomes) of their calibration error."""
    tables = []
    for confidences, outcomes in outputs:
        edges = np.linspace(0.0, 1.0, CALIBRATION_BINS + 1)
        bins = np.clip(np.searchsorted(edges, confidences, side="left") - 1, 0, CALIBRATION_BINS - 1)
        tables.append(np.eye(CALIBRATION_BINS)[bins] * (confidences - outcomes)[:, None])
    return lambda draws: np.mean([np.abs(draws @ table).sum(axis=1) / draws.sum(axis=1) for table in tables], axis=0)


def _area(positive: NDArray[np.bool_], scores: FloatArray) -> Score:
    """Returns the area under the ROC curve, ties counting half; nan where a draw lacks one of the values."""
    order = np.argsort(scores, kind="stable")
    starts = np.flatnonzero(np.diff(scores[order], prepend=-np.inf))
    ups = positive[order].astype(np.float64)

    def area(draws: FloatArray) -> FloatArray:
        ordered = draws[:, order]
        gained = np.add.reduceat(ordered * ups, starts, axis=1)
        lost = np.add.reduceat(ordered * (1.0 - ups), starts, axis=1)
        below = np.cumsum(lost, axis=1) - lost / 2.0
        pairs = gained.sum(axis=1) * lost.sum(axis=1)
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray((gained * below).sum(axis=1) / pairs)

    return area


def _mean_area(areas: Sequence[Score]) -> Score:
    def mean(draws: FloatArray) -> FloatArray:
        values = np.stack([area(draws) for area in areas])
        known = np.isfinite(values)
        sums = _ratio(np.where(known, values, 0.0).sum(axis=0), known.sum(axis=0))
        return np.where(known.any(axis=0), sums, np.nan)

    return mean


def _ratio(numerator: NDArray[Any], denominator: NDArray[Any]) -> FloatArray:
    result = np.zeros(np.shape(numerator), dtype=np.float64)
    np.divide(numerator, denominator, out=result, where=np.asarray(denominator) > 0)
    return result
