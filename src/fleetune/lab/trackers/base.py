"""What a tracker is told: a run, its trials, what they measure, and how each ends."""

from __future__ import annotations

import importlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from fleetune.compare.result import TrialResult

Outcome = Literal["done", "failed", "interrupted"]


@dataclass(frozen=True)
class TrackedRun:
    """A run, which groups its trials.

    Attributes:
        folder: Its folder, absolute.
        name: What the trials are grouped under: the folder's name.
        key: Tells it from other runs of the same recipe, and stays the same when it is taken up again.
    """

    folder: Path
    name: str
    key: str


@dataclass(frozen=True)
class TrackedTrial:
    """A trial as it starts, or is taken up again.

    Attributes:
        id: Its id in the ledger.
        label: Its name and seed.
        configuration: All that it was asked to do, and on what; nested, JSON alone.
    """

    id: str
    label: str
    configuration: dict[str, Any]


@dataclass(frozen=True)
class Point:
    """Finite numbers measured at an optimizer step; `time` is in seconds since 1970."""

    trial: str
    step: int
    time: float
    values: Mapping[str, float]


@dataclass(frozen=True)
class Picture:
    """A figure as a PNG file; `key` is good for a file's name."""

    key: str
    title: str
    png: bytes


@dataclass(frozen=True)
class Ending:
    """How a trial ended.

    Attributes:
        outcome: `interrupted` trials may be taken up again.
        reason: Why it failed.
        step: Its last optimizer step.
        metrics: Final numbers by name: each metric on each labelled split, and what the trial took.
        pictures: Its figures.
    """

    outcome: Outcome
    reason: str | None = None
    step: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict)
    pictures: Sequence[Picture] = ()


Draw = Callable[[TrialResult], Sequence[Picture]]
"""Draws a finished trial."""


class Tracker(ABC):
    """Shows trials in another program. Its calls come from one thread, which is not the one that trains.

    Whatever it raises ends its use in this run, and harms nothing else.
    """

    @abstractmethod
    def open(self, run: TrackedRun) -> str:
        """Connects, and returns in a line where the trials can be seen."""

    @abstractmethod
    def start(self, trial: TrackedTrial) -> str | None:
        """Begins a trial, or continues the one of an earlier attempt; returns a line where there is news for users."""

    @abstractmethod
    def log(self, trial: str, points: Sequence[Point]) -> None:
        """Adds points in the order of their steps.

        A trial that is taken up again begins with all that the ledger has of it, so that nothing is lost with a
        killed process; what the tracker has of that already, it leaves out.
        """

    @abstractmethod
    def end(self, trial: str, ending: Ending) -> None:
        """Ends a trial."""

    @abstractmethod
    def close(self) -> None:
        """Lets everything go, after a failure too."""


def make_tracker(name: str) -> Tracker:
    """Returns the tracker of that name; imports its module, but not its package."""
    made: Tracker = importlib.import_module(f"fleetune.lab.trackers.{name}").make()
    return made


def flat(node: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Returns the leaves of nested tables by dotted name; lists become JSON, and absent values are left out."""
    result: dict[str, Any] = {}
    for key, value in node.items():
        name = f"{above}{key}"
        if isinstance(value, Mapping):
            result |= flat(value, f"{name}.")
        elif value is not None:
            result[name] = value if isinstance(value, str | int | float) else json.dumps(value, default=str)
    return result
