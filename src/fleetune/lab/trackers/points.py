"""Makes points of a fleet's events: not more than can be looked at, and none twice."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from fleetune.engine.events import Evaluated, Stepped
from fleetune.lab.ledger import LedgerReader
from fleetune.lab.trackers.base import Point

POINTS_OF_A_TRIAL = 1000
POINTS_OF_A_RUN = 100_000
FEWEST_POINTS = 100


@dataclass
class _Window:
    """Steps that become one point."""

    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    newest: Stepped | None = None


class Points:
    """Makes points of the events of a run with so many trials.

    A point of training is the mean loss and gradient norm of all steps since the one before it, with the last
    learning rate; short trials have a point each step. Events of steps that it knows give no point: a trial that is
    taken up again repeats some.
    """

    def __init__(self, trials: int) -> None:
        share = POINTS_OF_A_RUN // max(1, trials)
        self._most = max(FEWEST_POINTS, min(POINTS_OF_A_TRIAL, share))
        self._windows: dict[str, _Window] = {}
        self._stepped: dict[str, int] = {}
        self._evaluated: dict[str, int] = {}

    def of(self, event: Stepped | Evaluated) -> Point | None:
        """Returns the point that `event` completes, None where it completes none."""
        return self._of_step(event) if isinstance(event, Stepped) else self._of_evaluation(event)

    def rest(self, trial: str) -> Point | None:
        """Returns the last point of a trial that ends, None where all its steps have gone into points."""
        window = self._windows.pop(trial, None)
        if window is None or window.newest is None:
            return None
        values = {
            "train/loss": _mean(window.losses),
            "train/learning_rate": window.newest.learning_rate,
            "train/gradient_norm": _mean(window.norms),
        }
        return _point(trial, window.newest.step, values)

    def last_step(self, trial: str) -> int:
        """Returns the highest step seen."""
        return max(self._stepped.get(trial, 0), self._evaluated.get(trial, 0))

    def _of_step(self, event: Stepped) -> Point | None:
        if event.step <= self._stepped.get(event.trial, 0):
            return None
        self._stepped[event.trial] = event.step
        window = self._windows.setdefault(event.trial, _Window())
        window.newest = event
        window.losses.append(event.loss)
        window.norms.append(event.gradient_norm)
        every = math.ceil(event.total_steps / self._most)
        is_complete = event.step % max(1, every) == 0 or event.step == event.total_steps
        return self.rest(event.trial) if is_complete else None

    def _of_evaluation(self, event: Evaluated) -> Point | None:
        if event.step <= self._evaluated.get(event.trial, -1):
            return None
        self._evaluated[event.trial] = event.step
        return _point(event.trial, event.step, {f"validation/{name}": value for name, value in event.metrics.items()})


def recorded_events(folder: Path, trial: str) -> Iterator[Stepped | Evaluated]:
    """Yields what the ledger has of a trial, in the order in which it happened."""
    with LedgerReader(folder) as ledger:
        row = ledger.rows("SELECT total_steps FROM trials WHERE id = ?", trial)
        steps = ledger.rows("SELECT * FROM steps WHERE trial = ? ORDER BY step", trial)
        metrics = ledger.rows("SELECT * FROM metrics WHERE trial = ? ORDER BY step", trial)
    total = (row[0]["total_steps"] if row else None) or len(steps)
    events: list[Stepped | Evaluated] = [
        Stepped(
            trial,
            one["step"],
            total,
            one["epoch"],
            math.nan if one["loss"] is None else one["loss"],
            one["learning_rate"],
            math.nan if one["gradient_norm"] is None else one["gradient_norm"],
            one["texts"],
            one["tokens"],
        )
        for one in steps
    ]
    evaluations: dict[int, Evaluated] = {}
    for one in metrics:
        found = evaluations.setdefault(one["step"], Evaluated(trial, one["step"], one["epoch"], {}, bool(one["best"])))
        if one["value"] is not None:
            found.metrics[one["name"]] = one["value"]
    # Sorting keeps a step before the evaluation that follows it.
    yield from sorted([*events, *evaluations.values()], key=lambda event: event.step)


def _point(trial: str, step: int, values: dict[str, float]) -> Point | None:
    finite = {name: float(value) for name, value in values.items() if math.isfinite(value)}
    return Point(trial, step, time.time(), finite) if finite else None


def _mean(values: list[float]) -> float:
    finite = [value for value in values if math.isfinite(value)]
    return math.fsum(finite) / len(finite) if finite else math.nan
