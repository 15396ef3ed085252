"""Scores over the share of the training texts, and whether more labels would help."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from fleetune.compare.configuration import Configuration, group
from fleetune.compare.intervals import CONFIDENCE, difference_interval
from fleetune.compare.pair import difference_of
from fleetune.compare.resampling import draws_by_trial
from fleetune.compare.result import TrialResult
from fleetune.compare.row import Draws, Row, scored_trials, summed_up
from fleetune.compare.tests import SIGNIFICANT, sign_flip
from fleetune.compare.titles import metric_title
from fleetune.methods import is_floor
from fleetune.metrics import MINIMISED

if TYPE_CHECKING:
    import pandas as pd

FEWEST_SEEDS = 3
"""Two seeds may gain alike by chance."""


@dataclass(frozen=True)
class CurvePoint:
    """One configuration trained on one share of the training texts.

    Attributes:
        name: Name of the configuration, the same at every share.
        data: Name of the data.
        metric: Name of the metric.
        share: Share of the training texts.
        texts: How many those are; None where not known.
        scores: The metric by seed; nan where it is not defined.
        mean: Over seeds.
        interval: 95 % interval of the mean over seeds and texts, of one seed over texts alone; None without a score.
        failed: How many trials failed.
        row: The same, to be set against another share.
    """

    name: str
    data: str
    metric: str
    share: float
    texts: int | None
    scores: dict[int, float]
    mean: float
    interval: tuple[float, float] | None
    failed: int = 0
    row: Row | None = field(default=None, repr=False, compare=False)

    def to_json(self) -> dict[str, Any]:
        """Returns the point with null for what is not known."""
        return {
            "name": self.name,
            "data": self.data,
            "metric": self.metric,
            "share": self.share,
            "texts": self.texts,
            "scores": {str(seed): score if math.isfinite(score) else None for seed, score in self.scores.items()},
            "mean": self.mean if math.isfinite(self.mean) else None,
            "interval": list(self.interval) if self.interval else None,
            "failed": self.failed,
        }


def data_curve(results: Sequence[TrialResult], split: str, metric: str | None = None) -> list[CurvePoint]:
    """Returns the points of every configuration that was trained on two shares or more, smallest share first.

    Args:
        results: Every trial of a run, failed and unfinished ones too.
        split: Whose predictions are scored.
        metric: Which score; each trial's own metric where absent.
    """
    curves = [_points(one, split, metric or one.first.metric) for one in group(results)]
    return [point for points in curves if len(points) > 1 for point in points]


def more_labels_help(points: Sequence[CurvePoint]) -> list[str]:
    """Returns a sentence a configuration on whether its last step to more texts still helped.

    The gain of the last step is paired by seed and text. Its interval is wide enough to hold for all the
    configurations of `points` at once (Bonferroni), and must lie above 0 before more labels are said to help. Of what
    learns nothing by design nothing is said.
    """
    curves: dict[tuple[str, str], list[CurvePoint]] = {}
    for point in points:
        if point.row is None or not is_floor(point.row.configuration.first.kind):
            curves.setdefault((point.data, point.name), []).append(point)
    steps = [(curve[-2], curve[-1]) for curve in (_by_share(one) for one in curves.values()) if len(curve) > 1]
    several_data = len({data for data, _ in curves}) > 1
    return [_sentence(before, after, len(steps), several_data) for before, after in steps]


def frame(points: Sequence[CurvePoint]) -> pd.DataFrame:
    """Returns the points as a table, one line each."""
    import pandas as pd

    records = [
        {"name": one.name, "data": one.data, "metric": one.metric, "share": one.share, "texts": one.texts}
        | {"seeds": len(one.scores), "mean": one.mean, "failed": one.failed}
        | dict(zip(("low", "high"), one.interval or (None, None), strict=True))
        for one in points
    ]
    columns = ["name", "data", "metric", "share", "texts", "seeds", "mean", "low", "high", "failed"]
    return pd.DataFrame.from_records(records, columns=columns)


def _points(configuration: Configuration, split: str, metric: str) -> list[CurvePoint]:
    shares = sorted({trial.train_share for trial in configuration.trials})
    if len(shares) < 2:
        return []
    draws = draws_by_trial(scored_trials(configuration, split), split, metric)
    found = [_point(configuration, share, split, metric, draws) for share in shares]
    return [point for point in found if point.scores]


def _point(configuration: Configuration, share: float, split: str, metric: str, draws: Draws) -> CurvePoint:
    trials = tuple(trial for trial in configuration.trials if trial.train_share == share)
    row = summed_up(replace(configuration, trials=trials), split, metric, draws)
    return CurvePoint(
        name=configuration.name,
        data=configuration.first.data,
        metric=metric,
        share=share,
        texts=next((trial.train_texts for trial in trials if trial.train_texts is not None), None),
        scores=row.scores,
        mean=row.mean,
        interval=row.interval,
        failed=len(row.configuration.failed),
        row=row,
    )


def _by_share(points: Sequence[CurvePoint]) -> list[CurvePoint]:
    return sorted((point for point in points if math.isfinite(point.mean)), key=lambda point: point.share)


def _sentence(before: CurvePoint, after: CurvePoint, curves: int, several_data: bool) -> str:
    name = f"{after.name} on {after.data}" if several_data else after.name
    is_fitted = after.row is not None and after.row.is_baseline
    # A baseline makes no steps; what trains makes its epochs on fewer texts in fewer steps.
    of_what = "training texts" if is_fitted else "training texts, and of the steps"
    step = f"from {_amount(before)} to {_amount(after)} of the {of_what}"
    found = difference_of(after.row, before.row) if after.row and before.row else None
    needed = 1 if is_fitted else FEWEST_SEEDS
    if found is None or len(found.by_seed) < needed:
        return f"{name}: fewer than {FEWEST_SEEDS} seeds at both sizes do not show whether more labels help ({step})."
    sign = -1.0 if after.metric in MINIMISED else 1.0
    gain = statistics.fmean(found.by_seed)
    ends = difference_interval(gain, found.known, after.metric, (1.0 - CONFIDENCE) / curves)
    low, high = sorted(sign * end for end in ends)
    over = "the texts" if needed == 1 else f"{len(found.by_seed)} seeds and the texts"
    together = f", holding for all {curves} configurations together" if curves > 1 else ""
    numbers = (
        f"the last step, {step}, improved {metric_title(after.metric)} by {sign * gain:.3f} (95 % interval "
        f"{low:.3f} to {high:.3f} over {over}{together})"
    )
    # One fit of each size knows nothing of other draws of so many texts.
    if low > 0.0 and not is_fitted and sign_flip(found.by_seed) * curves < SIGNIFICANT:
        return f"{name}: yes, it was still gaining from more labels: {numbers}."
    if low > 0.0:
        few = "one fit of each does" if is_fitted else f"{len(found.by_seed)} seeds do"
        return f"{name}: more labels seem to help, although {few} not prove it: {numbers}."
    return f"{name}: not shown that more labels help: {numbers}."


def _amount(point: CurvePoint) -> str:
    texts = f" ({point.texts:,})" if point.texts is not None else ""
    return f"{100 * point.share:g} %{texts}"
