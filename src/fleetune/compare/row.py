"""One configuration summed up over its seeds: mean, spread, cost, and what went wrong."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fleetune.compare.configuration import Configuration
from fleetune.methods import is_baseline

CONFIDENCE = 0.95
LOWER_BOUND = {"matthews": -1.0}
UNBOUNDED_ABOVE = frozenset({"log_loss", "loss"})


@dataclass(frozen=True)
class Row:
    """One configuration, summed up over its finished seeds.

    Attributes:
        configuration: What it sums up.
        metric: Name of the metric.
        scores: The metric by seed; nan where it is not defined.
        interval: 95 % t-interval of the mean over seeds, within the metric's range; None below two seeds.
        degenerate: By seed, why the trial shows nothing learned; empty where all show something.
        tied_with_best: Whether the spread over seeds does not tell it from the best row on the same data.
    """

    configuration: Configuration
    metric: str
    scores: dict[int, float]
    interval: tuple[float, float] | None
    degenerate: dict[int, str]
    tied_with_best: bool = False

    @property
    def name(self) -> str:
        """Name of the configuration."""
        return self.configuration.name

    @property
    def is_baseline(self) -> bool:
        """Whether it is a baseline: it gives the same each time, so its one trial has no spread over seeds."""
        return is_baseline(self.configuration.first.kind)

    @property
    def has_known_spread(self) -> bool:
        """Whether its seeds, or that it needs none, tell how far its mean hangs on them."""
        return self.interval is not None or (self.is_baseline and math.isfinite(self.mean))

    @property
    def mean(self) -> float:
        """Mean over finished seeds; nan if there are none, or one of them has no score."""
        return statistics.fmean(self.scores.values()) if self.scores else math.nan

    @property
    def spread(self) -> float | None:
        """Standard deviation over finished seeds (n - 1), None below two."""
        values = list(self.scores.values())
        return statistics.stdev(values) if len(values) > 1 and math.isfinite(self.mean) else None

    @property
    def trainable(self) -> int | None:
        """Number of trained parameters, head included."""
        return self.configuration.first.parameters.get("trainable")

    @property
    def seconds(self) -> float | None:
        """Mean over finished seeds."""
        values = [trial.seconds for trial in self.configuration.done if trial.seconds is not None]
        return statistics.fmean(values) if values else None

    @property
    def peak_bytes(self) -> int | None:
        """Highest over finished seeds."""
        return max((t.peak_bytes for t in self.configuration.done if t.peak_bytes is not None), default=None)

    @property
    def bundle_bytes(self) -> int | None:
        """Largest over finished seeds."""
        return max((t.bundle_bytes for t in self.configuration.done if t.bundle_bytes is not None), default=None)

    def to_json(self) -> dict[str, Any]:
        """Returns the row with null for what is not known."""
        first = self.configuration.first
        return {
            "name": self.name,
            "data": first.data,
            "backbone": first.backbone,
            "method": first.method,
            "kind": first.kind,
            "settings": first.settings,
            "training": first.training,
            "metric": self.metric,
            "seeds": len(self.scores),
            "scores": {str(seed): _number(score) for seed, score in self.scores.items()},
            "mean": _number(self.mean),
            "spread": self.spread,
            "interval": list(self.interval) if self.interval else None,
            "parameters": first.parameters,
            "trainable": self.trainable,
            "seconds": self.seconds,
            "peak_bytes": self.peak_bytes,
            "bundle_bytes": self.bundle_bytes,
            "tied_with_best": self.tied_with_best,
            "baseline": self.is_baseline,
            "degenerate": bool(self.degenerate),
            "degenerate_seeds": {str(seed): reason for seed, reason in self.degenerate.items()},
            "failed": len(self.configuration.failed),
            "failures": {str(trial.seed): trial.reason for trial in self.configuration.failed},
            "unfinished": len(self.configuration.trials)
            - len(self.configuration.done)
            - len(self.configuration.failed),
        }


def summed_up(configuration: Configuration, split: str, metric: str) -> Row:
    """Returns `configuration` scored by `metric` on `split`."""
    scored = [trial for trial in configuration.done if len(trial.predictions.get(split, ((), ()))[0])]
    scores = {trial.seed: trial.scores(split).get(metric, math.nan) for trial in scored}
    reasons = {trial.seed: trial.degenerate_reason(split) for trial in scored}
    return Row(
        configuration,
        metric,
        scores,
        seed_interval(list(scores.values()), metric),
        {seed: reason for seed, reason in reasons.items() if reason},
    )


def seed_interval(scores: Sequence[float], metric: str) -> tuple[float, float] | None:
    """Returns the 95 % t-interval of the mean over seeds, cut to the metric's range; None where it is not known."""
    if len(scores) < 2 or not all(math.isfinite(score) for score in scores):
        return None
    from scipy.stats import t

    mean = statistics.fmean(scores)
    half = float(t.ppf(0.5 + CONFIDENCE / 2, len(scores) - 1)) * statistics.stdev(scores) / math.sqrt(len(scores))
    high = mean + half if metric in UNBOUNDED_ABOVE else min(mean + half, 1.0)
    return max(mean - half, LOWER_BOUND.get(metric, 0.0)), high


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None
