"""Scores of predictions by scikit-learn, and of texts drawn anew by weighted tables of confusion.

Nothing is shared with the package: point scores are scikit-learn's, and what it lacks is written from the definition.
"""

from __future__ import annotations

import hashlib
import math
import warnings
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special
from sklearn import metrics as sk

FloatArray = NDArray[np.float64]
BINS = 15
EPSILON = float(np.finfo(np.float64).eps)
LOWER_IS_BETTER = frozenset({"loss", "log_loss", "ece"})


def probabilities(logits: FloatArray, several: bool) -> FloatArray:
    """Returns sigmoid or softmax `(texts, labels)`."""
    return np.asarray(special.expit(logits) if several else special.softmax(logits, axis=1))


@dataclass
class Judged:
    """Predictions beside the truth: labels and decisions `(texts,)`, or 0/1 `(texts, labels)`."""

    truth: NDArray[np.int64]
    logits: FloatArray
    decided: NDArray[np.int64]
    several: bool

    @property
    def chances(self) -> FloatArray:
        return probabilities(self.logits, self.several)

    def score(self, metric: str) -> float:
        """Returns the metric on these texts; nan where logits are not numbers, or it is not defined."""
        if not np.isfinite(self.logits).all():
            return math.nan
        if metric in ("loss", "log_loss", "ece"):
            return float(self.drawn(metric, np.ones((1, len(self.truth))))[0])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return self._by_sklearn(metric)

    def _by_sklearn(self, metric: str) -> float:
        if metric in ("accuracy", "exact_match"):
            return float(sk.accuracy_score(self.truth, self.decided))
        if metric == "roc_auc":
            areas = self.areas()
            if self.several:
                return float(np.nanmean(areas)) if np.isfinite(areas).any() else math.nan
            return float(areas[1] if len(areas) == 2 else areas.mean())
        if metric == "matthews":
            columns = range(self.truth.shape[1]) if self.several else ()
            found = [sk.matthews_corrcoef(self.truth[:, one], self.decided[:, one]) for one in columns]
            return float(np.mean(found)) if self.several else float(sk.matthews_corrcoef(self.truth, self.decided))
        base, _, average = metric.partition("_")
        by = {"f1": sk.f1_score, "precision": sk.precision_score, "recall": sk.recall_score}[base]
        return float(by(self.truth, self.decided, average=average or "binary", zero_division=0))

    def areas(self) -> FloatArray:
        """Returns the area under each label's ROC curve, against the rest; nan without both values."""
        truth = self.truth if self.several else self.truth[:, None] == np.arange(self.logits.shape[1])
        return np.array([_area(column, score) for column, score in zip(truth.T, self.chances.T, strict=True)])

    def drawn(self, metric: str, draws: FloatArray) -> FloatArray:
        """Returns the metric of each draw, in which a text counts as often as it is drawn `(draws,)`."""
        if not np.isfinite(self.logits).all():
            return np.full(len(draws), np.nan)
        if metric in ("accuracy", "exact_match"):
            same = self.truth == self.decided
            return _weighted(draws, same.all(axis=1) if self.several else same)
        if metric == "loss":
            return _weighted(draws, self._losses(0.0))
        if metric == "log_loss":
            return _weighted(draws, self._losses(EPSILON))
        if metric == "ece":
            return np.mean([_gap(draws, *pair) for pair in self.confidences()], axis=0)
        if metric == "roc_auc":
            return self._drawn_areas(draws)
        return self._from_confusion(metric, draws)

    def confidences(self, temperature: float = 1.0) -> list[tuple[FloatArray, FloatArray]]:
        """Returns confidences with whether each is right: of the top label, or of each label where several."""
        chances = probabilities(self.logits / temperature, self.several)
        if self.several:
            return [(chance, truth == 1.0) for chance, truth in zip(chances.T, self.truth.T, strict=True)]
        return [(chances.max(axis=1), (chances.argmax(axis=1) == self.truth).astype(np.float64))]

    def _losses(self, clip: float) -> FloatArray:
        """Returns minus the log probability of what is true, mean over labels where several; clipped if wished."""
        if clip:
            chances = self.chances
            likely = np.where(self.truth == 1, chances, 1 - chances) if self.several else _of_truth(chances, self.truth)
            likely = -np.log(np.clip(likely, clip, 1 - clip))
            return np.asarray(likely.mean(axis=1) if self.several else likely)
        if self.several:
            return np.asarray(np.logaddexp(0.0, np.where(self.truth == 1, -1.0, 1.0) * self.logits).mean(axis=1))
        return -_of_truth(special.log_softmax(self.logits, axis=1), self.truth)

    def _drawn_areas(self, draws: FloatArray) -> FloatArray:
        labels = self.logits.shape[1]
        truth = self.truth if self.several else self.truth[:, None] == np.arange(labels)
        chances = self.chances
        columns = [1] if labels == 2 and not self.several else range(labels)
        areas = np.stack([_drawn_area(draws, truth[:, one] == 1, chances[:, one]) for one in columns])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return np.asarray(np.nanmean(areas, axis=0) if self.several else areas.mean(axis=0))

    def _from_confusion(self, metric: str, draws: FloatArray) -> FloatArray:
        base, _, average = metric.partition("_")
        if self.several:
            counts = [_counts(draws, truth, chosen) for truth, chosen in zip(self.truth.T, self.decided.T, strict=True)]
            hits, given, had, total = (np.stack(one, axis=1) for one in zip(*counts, strict=True))
        else:
            labels = range(self.logits.shape[1])
            counts = [_counts(draws, self.truth == one, self.decided == one) for one in labels]
            hits, given, had, total = (np.stack(one, axis=1) for one in zip(*counts, strict=True))
        if base == "matthews":
            return _correlation(hits, given, had, total, self.several)
        if average == "micro":
            hits, given, had = (one.sum(axis=1, keepdims=True) for one in (hits, given, had))
        found = {"precision": _over(hits, given), "recall": _over(hits, had), "f1": _over(2 * hits, given + had)}[base]
        if average == "":
            return found[:, 1]
        if average == "weighted":
            return _over((found * had).sum(axis=1), had.sum(axis=1))
        counted = np.ones_like(found) if self.several or average == "micro" else (given + had > 0) * 1.0
        return _over((found * counted).sum(axis=1), counted.sum(axis=1))


def _of_truth(values: FloatArray, truth: NDArray[np.int64]) -> FloatArray:
    return values[np.arange(len(truth)), truth]


def _weighted(draws: FloatArray, values: NDArray[Any]) -> FloatArray:
    return np.asarray(draws @ values.astype(np.float64) / draws.sum(axis=1))


def _places(confidences: FloatArray) -> NDArray[np.int64]:
    """Returns the bin of each confidence, from 1; an edge belongs to the bin below it."""
    return np.maximum(np.digitize(confidences, np.linspace(0.0, 1.0, BINS + 1), right=True), 1)


def _gap(draws: FloatArray, confidences: FloatArray, right: FloatArray) -> FloatArray:
    """Returns each draw's mean distance of confidence and outcome over equal bins, an edge in the bin below."""
    places = _places(confidences)
    total = np.zeros(len(draws))
    for place in np.unique(places):
        inside = places == place
        total += abs(draws[:, inside] @ (confidences[inside] - right[inside]))
    return np.asarray(total / draws.sum(axis=1))


def calibration_error(confidences: FloatArray, right: FloatArray) -> float:
    return float(_gap(np.ones((1, len(right))), confidences, right)[0])


def bins(confidences: FloatArray, right: FloatArray) -> list[tuple[float, float, int, float, float]]:
    """Returns the ends, number, mean confidence and share right of each bin that holds something."""
    places = _places(confidences)
    found = []
    for place in np.unique(places):
        inside = places == place
        means = float(confidences[inside].mean()), float(right[inside].mean())
        found.append(((place - 1) / BINS, place / BINS, int(inside.sum()), *means))
    return found


def _area(truth: NDArray[Any], score: FloatArray) -> float:
    return float(sk.roc_auc_score(truth, score)) if 0 < truth.sum() < len(truth) else math.nan


def _drawn_area(draws: FloatArray, truth: NDArray[np.bool_], score: FloatArray) -> FloatArray:
    """Returns the share of pairs of a positive and a negative text in the right order (Mann and Whitney)."""
    above = np.sign(score[truth][:, None] - score[~truth][None, :]) / 2 + 0.5
    positive, negative = draws[:, truth], draws[:, ~truth]
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(((positive @ above) * negative).sum(axis=1) / positive.sum(axis=1) / negative.sum(axis=1))


def _counts(draws: FloatArray, truth: NDArray[Any], chosen: NDArray[Any]) -> tuple[FloatArray, ...]:
    truth, chosen = truth.astype(np.float64), chosen.astype(np.float64)
    return draws @ (truth * chosen), draws @ chosen, draws @ truth, draws.sum(axis=1)


def _over(numerator: FloatArray, denominator: FloatArray) -> FloatArray:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(denominator > 0, numerator / denominator, 0.0)


def _correlation(hits: FloatArray, given: FloatArray, had: FloatArray, total: FloatArray, several: bool) -> FloatArray:
    if several:
        spread = had * (total - had) * given * (total - given)
        return np.asarray(_over(hits * total - given * had, np.sqrt(np.maximum(spread, 0.0))).mean(axis=1))
    texts = total[:, 0]
    covariance = hits.sum(axis=1) * texts - (given * had).sum(axis=1)
    spread = (texts**2 - (given**2).sum(axis=1)) * (texts**2 - (had**2).sum(axis=1))
    return _over(covariance, np.sqrt(np.maximum(spread, 0.0)))


def stream(*key: int | str) -> np.random.Generator:
    """Returns the generator of a key, as runs document it."""
    digest = hashlib.blake2b("\x1f".join(str(one) for one in key).encode(), digest_size=32).digest()
    seeds = [int.from_bytes(digest[start : start + 4], "little") for start in range(0, 32, 4)]
    return np.random.Generator(np.random.SFC64(np.random.SeedSequence(seeds)))


@cache
def draws_of(texts: int, draws: int = 1_000) -> FloatArray:
    """Returns how often each text is in each draw `(draws, texts)`."""
    return stream("texts", texts).multinomial(texts, np.full(texts, 1.0 / texts), size=draws).astype(np.float64)


def temperature(labels: NDArray[np.int64], logits: FloatArray, several: bool) -> float:
    """Returns what logits are divided by: least log loss with log T ~ N(0, 1), between 0.05 and 20."""
    if not len(labels) or not np.isfinite(logits).all() or len(np.unique(labels)) == 1:
        return 1.0
    per_text = logits.shape[1] if several else 1

    def cost(log_t: float) -> float:
        judged = Judged(labels, logits / math.exp(log_t), labels, several)
        return float(judged._losses(0.0).sum()) * per_text + log_t**2 / 2

    points = np.linspace(math.log(0.05), math.log(20.0), 60)
    best = int(np.argmin([cost(point) for point in points]))
    ends = points[max(best - 1, 0)], points[min(best + 1, len(points) - 1)]
    found = optimize.minimize_scalar(cost, bounds=ends, method="bounded", options={"xatol": 1e-9})
    return float(min(max(math.exp(found.x), 0.05), 20.0))


def tuned(labels: NDArray[np.int64], chances: FloatArray) -> FloatArray:
    """Returns the threshold of each label by its F1 on these texts, drawn in log-odds towards one for all of them."""
    if not labels.any() or not np.isfinite(chances).all():
        return np.full(chances.shape[1], 0.5)
    common = _drawn_to(_best_threshold(labels.ravel(), chances.ravel()), 0.5, int(labels.sum()))
    found = []
    for truth, chance in zip(labels.T, chances.T, strict=True):
        own = int(truth.sum())
        found.append(_drawn_to(_best_threshold(truth, chance), common, own) if own else 0.5)
    return np.array(found)


def _drawn_to(threshold: float, towards: float, positives: int) -> float:
    def odds(value: float) -> float:
        value = min(max(value, 1e-12), 1 - 1e-12)
        return math.log(value) - math.log1p(-value)

    weight = positives / (positives + 5)
    return 1 / (1 + math.exp(-(weight * odds(threshold) + (1 - weight) * odds(towards))))


def _best_threshold(truth: NDArray[np.int64], chances: FloatArray) -> float:
    """Returns the middle of the gap between probabilities with the highest F1 above it; of equals by 0.5."""
    values = np.unique(chances)
    lower = np.append(0.0, values[:-1])
    hits, given = _at_least(values, chances[truth == 1]), _at_least(values, chances)
    f1 = (2.0 * hits / (given + truth.sum())).tolist()
    highest = max(f1)
    best = [place for place, value in enumerate(f1) if value == highest]
    if any(lower[place] < 0.5 <= values[place] for place in best):
        return 0.5
    # Of equally near ones the highest.
    place = min(reversed(best), key=lambda one: min(abs(lower[one] - 0.5), abs(values[one] - 0.5)))
    return _middle(lower[place], values[place])


def _at_least(values: FloatArray, chances: FloatArray) -> NDArray[np.int64]:
    """Returns how many of `chances` reach each of `values`."""
    return np.asarray(len(chances) - np.searchsorted(np.sort(chances), values, side="left"))


def _middle(low: float, high: float) -> float:
    middle = (float(low) + float(high)) / 2
    return middle if middle > low else float(high)


def cross_fitted(labels: NDArray[np.int64], chances: FloatArray) -> FloatArray:
    """Returns thresholds for each text, tuned on the texts of the other folds `(texts, labels)`."""
    found, folds = np.full(chances.shape, 0.5), min(5, len(labels))
    if folds < 2:
        return found
    own = stream("folds", len(labels), folds).permutation(len(labels)) % folds
    for fold in range(folds):
        found[own == fold] = tuned(labels[own != fold], chances[own != fold])
    return found


def wished(truth: NDArray[np.bool_], chances: FloatArray, kind: str, least: float) -> float | None:
    """Returns the threshold that keeps a precision (with the most recall) or a recall (the highest); None if none."""
    if not truth.any():
        return None
    values = np.unique(chances)
    hits, given = _at_least(values, chances[truth]), _at_least(values, chances)
    reached = hits / given if kind == "precision" else hits / truth.sum()
    fitting = [place for place in range(len(values)) if reached[place] >= least and hits[place]]
    if not fitting:
        return None
    found = values[max(fitting, key=lambda place: (hits[place] if kind == "precision" else 0, place))]
    below = values[values < found]
    return _middle(below[-1] if len(below) else 0.0, found)
