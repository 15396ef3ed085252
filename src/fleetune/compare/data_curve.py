"""Scores over the share of the training texts, and whether more labels would help."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fleetune.compare.configuration import Configuration, group
from fleetune.compare.result import TrialResult
from fleetune.compare.row import CONFIDENCE, seed_interval
from fleetune.compare.titles import metric_title
from fleetune.metrics import MINIMISED

if TYPE_CHECKING:
    import pandas as pd


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
        interval: 95 % t-interval of the mean over seeds; None below two seeds.
        failed: How many trials failed.
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


def more_labels_help(points: Sequence[CurvePoint]) -> str | None:
    """Returns a sentence a configuration on whether its last step to more texts still helped; None without any step.

    The gain of the last step is paired by seed. Its t-interval over seeds is wide enough to hold for all the
    configurations of `points` at once (Bonferroni), and must lie above 0 before more labels are said to help.
    """
    curves: dict[tuple[str, str], list[CurvePoint]] = {}
    for point in points:
        curves.setdefault((point.data, point.name), []).append(point)
    steps = [(curve[-2], curve[-1]) for curve in (_by_share(one) for one in curves.values()) if len(curve) > 1]
    several_data = len({data for data, _ in curves}) > 1
    return " ".join(_sentence(before, after, len(steps), several_data) for before, after in steps) or None


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
    found = [_point(configuration, share, split, metric) for share in shares]
    return [point for point in found if point.scores]


def _point(configuration: Configuration, share: float, split: str, metric: str) -> CurvePoint:
    trials = [trial for trial in configuration.trials if trial.train_share == share]
    scored = [one for one in trials if one.status == "done" and len(one.predictions.get(split, ((), ()))[0])]
    scores = {trial.seed: trial.scores(split).get(metric, math.nan) for trial in scored}
    return CurvePoint(
        name=configuration.name,
        data=configuration.first.data,
        metric=metric,
        share=share,
        texts=next((trial.train_texts for trial in trials if trial.train_texts is not None), None),
        scores=scores,
        mean=statistics.fmean(scores.values()) if scores else math.nan,
        interval=seed_interval(list(scores.values()), metric),
        failed=sum(trial.status == "failed" for trial in trials),
    )


def _by_share(points: Sequence[CurvePoint]) -> list[CurvePoint]:
    return sorted((point for point in points if math.isfinite(point.mean)), key=lambda point: point.share)


def _sentence(before: CurvePoint, after: CurvePoint, curves: int, several_data: bool) -> str:
    sign = -1.0 if after.metric in MINIMISED else 1.0
    gains = [sign * (after.scores[seed] - before.scores[seed]) for seed in after.scores if seed in before.scores]
    name = f"{after.name} on {after.data}" if several_data else after.name
    step = f"from {_amount(before)} to {_amount(after)} of the training texts"
    if len(gains) < 2:
        return f"{name}: with fewer than two seeds at both sizes nothing shows whether more labels help ({step})."
    gain, half = statistics.fmean(gains), _half_width(gains, curves)
    together = f", holding for all {curves} configurations together" if curves > 1 else ""
    numbers = (
        f"the last step, {step}, improved {metric_title(after.metric)} by {gain:.3f} (95 % interval over "
        f"{len(gains)} seeds {gain - half:.3f} to {gain + half:.3f}{together})"
    )
    if half > 0.0 and gain - half > 0.0:
        return f"{name}: yes, it was still gaining from more labels: {numbers}."
    return f"{name}: not shown that more labels help: {numbers}."


def _half_width(gains: Sequence[float], curves: int) -> float:
    from scipy.stats import t

    tail = (1.0 - CONFIDENCE) / (2.0 * curves)
    return float(t.isf(tail, len(gains) - 1)) * statistics.stdev(gains) / math.sqrt(len(gains))


def _amount(point: CurvePoint) -> str:
    texts = f" ({point.texts:,})" if point.texts is not None else ""
    return f"{100 * point.share:g} %{texts}"
