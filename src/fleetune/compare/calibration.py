"""How far probabilities are shares of right answers, and what thresholds for a wished precision or recall reach.

Temperatures and thresholds are fitted on each trial's validation texts, and judged on another split. On validation
itself both look better than they are.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from fleetune.calibration import (
    NEUTRAL_TEMPERATURE,
    calibrated_probabilities,
    calibrated_thresholds,
    fit_temperature,
)
from fleetune.compare.result import TrialResult
from fleetune.compare.row import Row
from fleetune.metrics import CALIBRATION_BINS, calibration_bins, evaluate, expected_calibration_error
from fleetune.thresholds import threshold_for

if TYPE_CHECKING:
    import pandas as pd

WishKind = Literal["precision", "recall"]
Bins = Mapping[str, NDArray[np.float64]]
Scored = tuple[NDArray[np.bool_], NDArray[np.float64]]
"""Whether each text has a label, and with what probability: each `(texts,)`, or `(texts, num_labels)`."""

WISHED = (0.8, 0.9, 0.95)
OF_PROBABILITIES = ("roc_auc", "log_loss", "ece", "loss")
"""Metrics that ask for no decision."""


@dataclass(frozen=True)
class Reliability:
    """Confidences of one configuration against shares of right answers, before and after temperature.

    Where texts have one label each, a confidence is the highest probability, right where its label is; where they may
    have several, each label's own probability, right where the text has the label.

    Attributes:
        name: The configuration.
        split: Whose texts.
        plain: `count`, `confidence` and `correct` of each bin `(bins,)`, seeds pooled, as trained.
        calibrated: The same after temperature.
        ece: Expected calibration error, mean over seeds, as trained; nan where there are no predictions.
        calibrated_ece: The same after temperature.
        temperatures: By seed.
    """

    name: str
    split: str
    plain: Bins
    calibrated: Bins
    ece: float
    calibrated_ece: float
    temperatures: dict[int, float]

    def frame(self) -> pd.DataFrame:
        """Returns one line a bin that is not empty; `probabilities` is `as trained` or `calibrated`."""
        import pandas as pd

        edges = np.linspace(0.0, 1.0, CALIBRATION_BINS + 1)
        records = [
            {
                "probabilities": kind,
                "low": edges[place],
                "high": edges[place + 1],
                "count": int(bins["count"][place]),
                "confidence": bins["confidence"][place],
                "correct": bins["correct"][place],
            }
            for kind, bins in (("as trained", self.plain), ("calibrated", self.calibrated))
            for place in np.flatnonzero(bins["count"])
        ]
        return pd.DataFrame.from_records(
            records, columns=["probabilities", "low", "high", "count", "confidence", "correct"]
        )


def temperature_of(trial: TrialResult) -> float:
    """Returns the temperature fitted on the trial's validation texts, 1.0 where it has none."""
    held_out = trial.predictions.get("validation")
    return NEUTRAL_TEMPERATURE if held_out is None else fit_temperature(*held_out)


def reliability(row: Row, split: str) -> Reliability:
    """Returns the reliability of a configuration's finished trials on `split`.

    Trials whose logits are not numbers are left out.
    """
    trials = _usable(row, split)
    temperatures = {trial.seed: temperature_of(trial) for trial in trials}
    plain = [_confidences(trial, split, NEUTRAL_TEMPERATURE) for trial in trials]
    calibrated = [_confidences(trial, split, temperatures[trial.seed]) for trial in trials]
    return Reliability(
        row.name, split, _pooled(plain), _pooled(calibrated), _mean_ece(plain), _mean_ece(calibrated), temperatures
    )


def _usable(row: Row, split: str) -> list[TrialResult]:
    return [
        trial
        for trial in row.configuration.done
        if split in trial.predictions and len(trial.labels(split)) and np.isfinite(trial.predictions[split][1]).all()
    ]


def _confidences(
    trial: TrialResult, split: str, temperature: float
) -> list[tuple[NDArray[np.float64], NDArray[np.bool_]]]:
    """Returns confidences and whether each is right: of the top label, or one pair of arrays for each label."""
    labels, logits = trial.predictions[split]
    probabilities = calibrated_probabilities(logits, temperature, trial.multi_label)
    if trial.multi_label:
        return [(probabilities[:, label], labels[:, label] == 1) for label in range(probabilities.shape[1])]
    return [(probabilities.max(axis=1), probabilities.argmax(axis=1) == labels)]


def _pooled(trials: Sequence[list[tuple[NDArray[np.float64], NDArray[np.bool_]]]]) -> Bins:
    pairs = [pair for labels in trials for pair in labels]
    confidences = np.concatenate([np.empty(0), *(confidence for confidence, _ in pairs)])
    return calibration_bins(confidences, np.concatenate([np.empty(0), *(right for _, right in pairs)]))


def _mean_ece(trials: Sequence[list[tuple[NDArray[np.float64], NDArray[np.bool_]]]]) -> float:
    errors = [statistics.fmean(expected_calibration_error(*pair) for pair in labels) for labels in trials]
    return statistics.fmean(errors) if errors else float("nan")


@dataclass(frozen=True)
class TrialPoint:
    """What one trial's threshold for a wished precision or recall of one label reaches.

    Attributes:
        label: The label.
        wish: `precision` or `recall`.
        wished: How much of it, on validation.
        threshold: Calibrated probability from which the label is given; None where validation cannot reach the wish.
        validation_precision: Precision on validation, on which the threshold was found.
        validation_recall: Recall there.
        precision: Precision on the split asked about; None where the label is given to no text there.
        recall: Recall there; None where no text has the label.
    """

    label: str
    wish: WishKind
    wished: float
    threshold: float | None
    validation_precision: float | None = None
    validation_recall: float | None = None
    precision: float | None = None
    recall: float | None = None


def trial_points(trial: TrialResult, split: str, wishes: Sequence[tuple[WishKind, float]]) -> list[TrialPoint]:
    """Returns a point for each wish and label that has a threshold: all if multi-label, the second of two, else none.

    Args:
        trial: A finished trial.
        split: Where it is judged; where the trial has no predictions for it, precision and recall there are None.
        wishes: What is wished, and how much of it.
    """
    if not trial.multi_label and len(trial.label_names) != 2:
        return []
    temperature = temperature_of(trial)
    found = {
        name: _by_label(trial, name, temperature)
        for name in ("validation", split)
        if name in trial.predictions and len(trial.labels(name))
    }
    columns = range(len(trial.label_names)) if trial.multi_label else (1,)
    return [
        _point(
            trial.label_names[column],
            {name: (truth[:, column], scores[:, column]) for name, (truth, scores) in found.items()},
            split,
            wish,
            wished,
        )
        for wish, wished in wishes
        for column in columns
    ]


def _point(label: str, found: Mapping[str, Scored], split: str, wish: WishKind, wished: float) -> TrialPoint:
    held_out = found.get("validation")
    threshold = None if held_out is None else threshold_for(held_out[0], held_out[1], **{wish: wished})
    if held_out is None or threshold is None:
        return TrialPoint(label, wish, wished, None)
    judged = precision_and_recall(*found[split], threshold) if split in found else (None, None)
    return TrialPoint(label, wish, wished, threshold, *precision_and_recall(*held_out, threshold), *judged)


def _by_label(trial: TrialResult, split: str, temperature: float) -> Scored:
    """Returns whether each text has each label, and its calibrated probability, both `(texts, num_labels)`."""
    labels, logits = trial.predictions[split]
    indicators = labels == 1 if trial.multi_label else labels[:, None] == np.arange(len(trial.label_names))
    return indicators, calibrated_probabilities(logits, temperature, trial.multi_label)


def precision_and_recall(
    truth: NDArray[np.bool_], scores: NDArray[np.float64], threshold: float
) -> tuple[float | None, float | None]:
    """Returns precision and recall of one label at `threshold`; None for one whose denominator is 0."""
    given = scores >= threshold
    hits, chosen, positives = int((truth & given).sum()), int(given.sum()), int(truth.sum())
    return (hits / chosen if chosen else None), (hits / positives if positives else None)


@dataclass(frozen=True)
class OperatingPoint:
    """`TrialPoint` over seeds: means over the seeds that know a number.

    Attributes:
        label: The label.
        wish: `precision` or `recall`.
        wished: How much of it, on validation.
        seeds: Number of finished seeds.
        reached: Of them, those whose validation reaches the wish; the means are over these.
        threshold: Mean threshold, for calibrated probabilities.
        validation_precision: Precision on validation, on which the thresholds were found.
        validation_recall: Recall there.
        precision: Precision on the split asked about.
        recall: Recall there.
    """

    label: str
    wish: WishKind
    wished: float
    seeds: int
    reached: int
    threshold: float | None
    validation_precision: float | None
    validation_recall: float | None
    precision: float | None
    recall: float | None


@dataclass(frozen=True)
class OperatingPoints:
    """What thresholds for wished precisions and recalls reach, by label; empty where texts have one of many labels."""

    name: str
    split: str
    points: tuple[OperatingPoint, ...]

    def frame(self) -> pd.DataFrame:
        """Returns one line a point."""
        import pandas as pd

        return pd.DataFrame([asdict(point) for point in self.points], columns=list(OperatingPoint.__annotations__))


def operating_points(row: Row, split: str, wished: Sequence[float] = WISHED) -> OperatingPoints:
    """Returns what thresholds for each wished precision and recall, found on validation, reach on `split`."""
    trials = _usable(row, split)
    kinds: tuple[WishKind, ...] = ("precision", "recall")
    wishes = [(kind, value) for kind in kinds for value in wished]
    by_trial = [trial_points(trial, split, wishes) for trial in trials]
    return OperatingPoints(row.name, split, tuple(_over_seeds(seeds) for seeds in zip(*by_trial, strict=True)))


def _over_seeds(points: Sequence[TrialPoint]) -> OperatingPoint:
    first, reached = points[0], [point for point in points if point.threshold is not None]
    names = ("threshold", "validation_precision", "validation_recall", "precision", "recall")
    means = [_mean([getattr(point, name) for point in reached]) for name in names]
    return OperatingPoint(first.label, first.wish, first.wished, len(points), len(reached), *means)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


def bundle_scores(
    trial: TrialResult,
    split: str,
    temperature: float,
    thresholds: NDArray[Any] | None = None,
    positive_threshold: float | None = None,
) -> dict[str, float]:
    """Returns every metric on `split` of a classifier that predicts as a bundle of `trial` does.

    Args:
        trial: A finished trial.
        split: Whose texts.
        temperature: What logits are divided by.
        thresholds: For calibrated probabilities, if multi-label; those of the trial where absent.
        positive_threshold: Of two labels, the calibrated probability from which the second is given.
    """
    labels, logits = trial.predictions[split]
    cooled = np.asarray(logits, dtype=np.float64) / temperature
    if trial.multi_label and thresholds is None:
        own = trial.thresholds(split)
        thresholds = None if own is None else calibrated_thresholds(own, temperature)
    scores = evaluate(labels, cooled, thresholds)
    if positive_threshold is None:
        return scores
    # The more probable of two labels, after the second one's log-odds are moved, is what the threshold decides.
    with np.errstate(divide="ignore"):
        moved = cooled - np.array([0.0, np.log(positive_threshold) - np.log1p(-positive_threshold)])
    return evaluate(labels, moved) | {name: scores[name] for name in OF_PROBABILITIES}
