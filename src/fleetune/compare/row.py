"""One configuration summed up over its seeds: mean, spread, cost, and what went wrong."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fleetune.compare.configuration import Configuration
from fleetune.compare.intervals import Interval, Uncertainty, score_interval, uncertainty
from fleetune.compare.learning import loss_at_chance
from fleetune.compare.result import TrialResult
from fleetune.methods import is_baseline, is_floor

Draws = Mapping[str, NDArray[np.float64]]
"""By trial id, its metric on each draw of texts `(draws,)`."""
Standing = Literal["chosen", "tied", "outpaced", "behind", "ahead", "not comparable"]


@dataclass(frozen=True)
class Row:
    """One configuration, summed up over its finished seeds.

    Attributes:
        configuration: What it sums up.
        metric: Name of the metric.
        scores: The metric by seed; nan where it is not defined.
        interval: 95 % interval of the mean over seeds and texts, within the metric's range; of one seed, over texts
            alone. None where there is no score.
        degenerate: By seed, why the trial shows nothing learned; empty where all show something.
        unlearned: The same on validation, by which rows are chosen.
        validation: Mean over seeds of the metric on validation, which alone selects; nan where there is none.
        texts: Number of texts scored.
        known: How sure the mean is; None where there is no score.
        draws: By seed, the metric on texts drawn anew `(draws,)`.
        standing: Where it stands against the row that validation chooses on the same data (`ties.py`).
    """

    configuration: Configuration
    metric: str
    scores: dict[int, float]
    interval: Interval | None
    degenerate: dict[int, str]
    unlearned: Mapping[int, str] = field(default_factory=dict)
    validation: float = math.nan
    texts: int = 0
    known: Uncertainty | None = field(default=None, repr=False)
    draws: Mapping[int, NDArray[np.float64]] = field(default_factory=dict, repr=False)
    standing: Standing = "not comparable"

    @property
    def name(self) -> str:
        """Name of the configuration."""
        return self.configuration.name

    @property
    def is_judged(self) -> bool:
        """Whether its scores say something of it: most of its seeds learned, and left a loss at chance."""
        if not math.isfinite(self.mean) or is_floor(self.configuration.first.kind):
            return False
        silent = {trial.seed for trial in self.configuration.done if loss_at_chance(trial)} | set(self.degenerate)
        return 2 * len(silent & set(self.scores)) < len(self.scores)

    @property
    def tied_with_best(self) -> bool:
        """Whether nothing shows it to be worse than the row that validation chooses."""
        return self.standing in ("chosen", "tied")

    @property
    def is_candidate(self) -> bool:
        """Whether it may be recommended: tied with the best, trained with several seeds, and all of them learned."""
        return self.tied_with_best and not self.is_baseline and not self.degenerate and len(self.scores) > 1

    @property
    def is_baseline(self) -> bool:
        """Whether it is a baseline: it gives the same each time, so its one trial has no spread over seeds."""
        return is_baseline(self.configuration.first.kind)

    @property
    def has_known_spread(self) -> bool:
        """Whether its seeds, or that it needs none, tell how far its mean hangs on them."""
        return math.isfinite(self.mean) and (len(self.scores) > 1 or self.is_baseline)

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
    def serving_operations(self) -> float | None:
        """Floating-point operations of one text in prediction."""
        return self.configuration.first.serving_operations

    @property
    def operations(self) -> float | None:
        """Floating-point operations of training and evaluation, mean over finished seeds."""
        return _mean([trial.operations for trial in self.configuration.done])

    @property
    def texts_per_second(self) -> float | None:
        """Training throughput of its fleet, mean over finished seeds."""
        return _mean([trial.texts_per_second for trial in self.configuration.done])

    @property
    def evaluation_texts_per_second(self) -> float | None:
        """Throughput of its evaluations, mean over finished seeds."""
        return _mean([trial.evaluation_texts_per_second for trial in self.configuration.done])

    @property
    def seconds(self) -> float | None:
        """Mean over finished seeds."""
        return _mean([trial.seconds for trial in self.configuration.done])

    @property
    def peak_bytes(self) -> int | None:
        """Highest over finished seeds."""
        return max((t.peak_bytes for t in self.configuration.done if t.peak_bytes is not None), default=None)

    @property
    def bundle_bytes(self) -> int | None:
        """Largest over finished seeds."""
        return max((t.bundle_bytes for t in self.configuration.done if t.bundle_bytes is not None), default=None)

    @property
    def interval_over(self) -> str | None:
        """What the interval is over, in words: of one seed it is silent about other seeds."""
        if self.interval is None:
            return None
        return "seeds and texts" if len(self.scores) > 1 else "texts"

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
            "interval_over": self.interval_over,
            "validation": _number(self.validation),
            "texts": self.texts,
            "parameters": first.parameters,
            "trainable": self.trainable,
            "seconds": self.seconds,
            "peak_bytes": self.peak_bytes,
            "operations": self.operations,
            "serving_operations": self.serving_operations,
            "texts_per_second": self.texts_per_second,
            "evaluation_texts_per_second": self.evaluation_texts_per_second,
            "bundle_bytes": self.bundle_bytes,
            "tied_with_best": self.tied_with_best,
            "standing": self.standing,
            "baseline": self.is_baseline,
            "degenerate": bool(self.degenerate),
            "degenerate_seeds": {str(seed): reason for seed, reason in self.degenerate.items()},
            "failed": len(self.configuration.failed),
            "failures": {str(trial.seed): trial.reason for trial in self.configuration.failed},
            "unfinished": len(self.configuration.trials)
            - len(self.configuration.done)
            - len(self.configuration.failed),
        }


def summed_up(configuration: Configuration, split: str, metric: str, draws: Draws | None = None) -> Row:
    """Returns `configuration` scored by `metric` on `split`; without `draws` it has no interval."""
    trials = scored_trials(configuration, split)
    scores = {trial.seed: trial.scores(split).get(metric, math.nan) for trial in trials}
    row = Row(
        configuration,
        metric,
        scores,
        None,
        _degenerate(configuration, split),
        _degenerate(configuration, "validation"),
        _validation(configuration, metric),
        len(trials[0].labels(split)) if trials else 0,
    )
    return row if draws is None else _with_interval(row, {trial.seed: draws[trial.id] for trial in trials})


def scored_trials(configuration: Configuration, split: str) -> list[TrialResult]:
    """Returns the finished trials that have predictions on `split`."""
    return [trial for trial in configuration.done if len(trial.labels(split))]


def _with_interval(row: Row, draws: dict[int, NDArray[np.float64]]) -> Row:
    if not math.isfinite(row.mean) or row.texts < 2:
        return replace(row, draws=draws)
    known = uncertainty(list(row.scores.values()), np.stack(list(draws.values())), row.texts)
    if known is None:
        return replace(row, draws=draws)
    return replace(row, interval=score_interval(row.mean, known, row.metric, row.texts), known=known, draws=draws)


def _degenerate(configuration: Configuration, split: str) -> dict[int, str]:
    reasons = {trial.seed: trial.degenerate_reason(split) for trial in scored_trials(configuration, split)}
    return {seed: reason for seed, reason in reasons.items() if reason}


def _validation(configuration: Configuration, metric: str) -> float:
    trials = scored_trials(configuration, "validation")
    mean = _mean([trial.scores("validation").get(metric, math.nan) for trial in trials])
    return math.nan if mean is None else mean


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None
