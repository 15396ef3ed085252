"""Where a configuration is weak: on short or long texts, on a value of a user's column, on a label.

Looking at many slices finds some that are low by chance. So intervals come from texts drawn anew (500 draws, the same
for all), and what is called weak has passed Holm's correction (1979) over everything that was looked at. The intervals
are about the choice of texts, given these trained classifiers; other seeds would add to them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fleetune.compare.decisions import as_sets
from fleetune.compare.gaps import DRAWS, Scores, gap_between, scores_on_parts
from fleetune.compare.held_out import HeldOutTexts
from fleetune.compare.intervals import CONFIDENCE
from fleetune.compare.resampling import KeptDraws, kept_draws
from fleetune.compare.row import Row, scored_trials
from fleetune.compare.slicing import FEWEST_TEXTS, LABEL, Slice, slices_of
from fleetune.compare.tests import holm
from fleetune.metrics import MINIMISED

if TYPE_CHECKING:
    import pandas as pd

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class SliceScore:
    """How one configuration does on one slice.

    Attributes:
        name: Name of the configuration.
        column: What the texts were divided by.
        value: Which part.
        texts: How many texts it has.
        mean: The metric there, mean over seeds; nan where it is not defined.
        spread: Standard deviation over seeds; None below two.
        difference: `mean` minus the score on the whole split.
        interval: 95 % interval of the difference; None where it is not defined.
        is_weak: Whether it is worse than the whole after correction for all that was looked at.
    """

    name: str
    column: str
    value: str
    texts: int
    mean: float
    spread: float | None
    difference: float
    interval: tuple[float, float] | None
    is_weak: bool

    def to_json(self) -> dict[str, Any]:
        """Returns the fields, with null for what is not known."""
        return {
            "name": self.name,
            "column": self.column,
            "value": self.value,
            "texts": self.texts,
            "mean": _number(self.mean),
            "spread": self.spread,
            "difference": _number(self.difference),
            "interval": list(self.interval) if self.interval else None,
            "weak": self.is_weak,
        }


@dataclass(frozen=True)
class WeakSpot:
    """A slice, or a label, on which another configuration is better than the chosen one.

    Attributes:
        chosen: Name of the chosen configuration.
        other: Name of the better one there.
        column: What the texts were divided by; `label` where it is about one label's F1.
        value: Which part.
        texts: How many texts it has.
        metric: Name of the metric.
        chosen_mean: The chosen one's score there.
        other_mean: The other's.
        difference: By how much the other is better, above 0 whichever way the metric runs.
        interval: Its 95 % interval, on the same texts drawn anew.
        holds: Whether it is above 0 after correction for all that was looked at.
    """

    chosen: str
    other: str
    column: str
    value: str
    texts: int
    metric: str
    chosen_mean: float
    other_mean: float
    difference: float
    interval: tuple[float, float]
    holds: bool

    def to_json(self) -> dict[str, Any]:
        """Returns the fields, and that the finding is exploratory."""
        return {
            "chosen": self.chosen,
            "other": self.other,
            "column": self.column,
            "value": self.value,
            "texts": self.texts,
            "metric": self.metric,
            "chosen_mean": self.chosen_mean,
            "other_mean": self.other_mean,
            "difference": self.difference,
            "interval": list(self.interval),
            "holds": self.holds,
            "exploratory": True,
        }


def slice_scores(rows: Sequence[Row], split: str, held_out: HeldOutTexts, metric: str) -> list[SliceScore]:
    """Returns the score of every row on every slice, in the order of the rows.

    Args:
        rows: Configurations on one data set.
        split: Whose predictions are scored.
        held_out: The split's texts.
        metric: Name of the metric.

    Raises:
        ValueError: If predictions are of another number of texts.
    """
    rows, parts = _scored(rows, split), slices_of(held_out)
    if not rows or not parts:
        return []
    _check_sizes(rows, split, len(held_out.texts))
    resampled = scores_on_parts(rows, split, metric, [None, *(part.texts for part in parts)])
    looks = []
    for index, row in enumerate(rows):
        whole = resampled[0][index]
        for part, scores in zip(parts, resampled[1:], strict=True):
            looks.append((row, part, scores[index], gap_between(scores[index], whole, len(part.texts))))
    p_values = holm([gap.p_value for _, _, _, gap in looks])
    worse = 1.0 if metric in MINIMISED else -1.0
    return [
        SliceScore(
            name=row.name,
            column=part.column,
            value=part.value,
            texts=len(part.texts),
            mean=scores.mean,
            spread=scores.spread,
            difference=gap.difference,
            interval=gap.interval,
            is_weak=_is_shown(worse * gap.difference, p_value, len(part.texts)),
        )
        for (row, part, scores, gap), p_value in zip(looks, p_values, strict=True)
    ]


def where_it_loses(
    chosen: Row, others: Sequence[Row], split: str, held_out: HeldOutTexts | None, metric: str
) -> list[WeakSpot]:
    """Returns slices and labels on which one of `others` is better than `chosen`, largest difference first.

    It is exploratory. A label is looked at by its F1 on the whole split.

    Args:
        chosen: The configuration to ship.
        others: Configurations on the same data.
        split: Whose predictions are scored.
        held_out: The split's texts; labels alone are looked at where absent.
        metric: Name of the metric on slices.

    Raises:
        ValueError: If predictions are of another number of texts.
    """
    rows = _scored([chosen, *(row for row in others if row.name != chosen.name)], split)
    if len(rows) < 2 or rows[0].name != chosen.name:
        return []
    _check_sizes(rows, split, len(scored_trials(rows[0].configuration, split)[0].labels(split)))
    looks: list[tuple[Slice, str, list[Scores]]] = []
    if held_out is not None:
        _check_sizes(rows, split, len(held_out.texts))
        parts = slices_of(held_out)
        found = scores_on_parts(rows, split, metric, [part.texts for part in parts])
        looks += [(part, metric, scores) for part, scores in zip(parts, found, strict=True)]
    looks += [(part, "f1", scores) for part, scores in _label_scores(rows, split)]
    pairs = [
        (row.name, part, used, scores[0], other, gap_between(other, scores[0], len(part.texts)))
        for part, used, scores in looks
        for row, other in zip(rows[1:], scores[1:], strict=True)
    ]
    p_values = holm([gap.p_value for *_, gap in pairs])
    spots = []
    for (name, part, used, own, other, gap), p_value in zip(pairs, p_values, strict=True):
        sign = -1.0 if used in MINIMISED else 1.0
        if gap.interval is None or not sign * gap.difference > 0.0:
            continue
        low, high = sorted(sign * end for end in gap.interval)
        spots.append(
            WeakSpot(
                chosen=chosen.name,
                other=name,
                column=part.column,
                value=part.value,
                texts=len(part.texts),
                metric=used,
                chosen_mean=own.mean,
                other_mean=other.mean,
                difference=sign * gap.difference,
                interval=(low, high),
                holds=_is_shown(sign * gap.difference, p_value, len(part.texts)),
            )
        )
    return sorted(spots, key=lambda spot: -spot.difference)


def frame(found: Sequence[SliceScore]) -> pd.DataFrame:
    """Returns the scores on slices as a table, one line each."""
    columns = ["name", "column", "value", "texts", "mean", "spread", "difference", "low", "high", "weak"]
    return _frame([one.to_json() for one in found], columns)


def weak_spots_frame(found: Sequence[WeakSpot]) -> pd.DataFrame:
    """Returns where the chosen configuration loses as a table, one line each."""
    columns = ["chosen", "other", "column", "value", "texts", "metric", "chosen_mean", "other_mean", "difference"]
    return _frame([one.to_json() for one in found], [*columns, "low", "high", "holds"])


def _scored(rows: Sequence[Row], split: str) -> list[Row]:
    return [row for row in rows if scored_trials(row.configuration, split)]


def _check_sizes(rows: Sequence[Row], split: str, texts: int) -> None:
    for row in rows:
        for trial in scored_trials(row.configuration, split):
            if (size := len(trial.labels(split))) != texts:
                raise ValueError(f"{row.name} has predictions for {size} texts of {split}; expected {texts}")


def _label_scores(rows: Sequence[Row], split: str) -> list[tuple[Slice, list[Scores]]]:
    """Returns each label with the F1 of each row on it; labels that no text has are left out."""
    first = scored_trials(rows[0].configuration, split)[0]
    truth = as_sets(first, first.labels(split))
    draws = kept_draws(len(truth), DRAWS)
    scores = [_label_f1(row, split, draws) for row in rows]
    return [
        (
            Slice(LABEL, name, np.flatnonzero(truth[:, label])),
            [Scores(list(seeds[:, label]), drawn[:, label]) for seeds, drawn in scores],
        )
        for label, name in enumerate(first.label_names)
        if truth[:, label].any()
    ]


def _label_f1(row: Row, split: str, draws: KeptDraws) -> tuple[FloatArray, FloatArray]:
    """Returns F1 by seed `(seeds, num_labels)`, and its mean over seeds on each draw `(draws, num_labels)`."""
    seeds, drawn = [], []
    for trial in scored_trials(row.configuration, split):
        truth = as_sets(trial, trial.labels(split)).astype(np.float64)
        chosen = as_sets(trial, trial.decisions(split)).astype(np.float64)
        doubled, named = 2.0 * truth * chosen, truth + chosen
        if not np.isfinite(trial.predictions[split][1]).all():
            named = np.full_like(named, np.nan)
        seeds.append(_ratio(doubled.sum(axis=0), named.sum(axis=0)))
        drawn.append(np.concatenate([_ratio(block @ doubled, block @ named) for block in draws]))
    return np.array(seeds), np.mean(drawn, axis=0)


def _ratio(numerator: FloatArray, denominator: FloatArray) -> FloatArray:
    return np.divide(numerator, denominator, out=np.zeros_like(numerator), where=denominator != 0.0)


def _is_shown(wanted: float, p_value: float, texts: int) -> bool:
    return wanted > 0.0 and p_value < 1.0 - CONFIDENCE and texts >= FEWEST_TEXTS


def _frame(records: Sequence[dict[str, Any]], columns: list[str]) -> pd.DataFrame:
    import pandas as pd

    ends = [dict(zip(("low", "high"), one["interval"] or (None, None), strict=True)) for one in records]
    return pd.DataFrame.from_records([one | end for one, end in zip(records, ends, strict=True)], columns=columns)


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None
