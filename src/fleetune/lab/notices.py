"""What a run tells whoever watches it, besides the events of its fleets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fleetune.engine.events import Event
from fleetune.lab.executors.base import BackboneFacts
from fleetune.lab.plan import Plan


@dataclass(frozen=True)
class RunOpened:
    """The run's folder is ready; `statuses` are the trials' by id, from an earlier start too."""

    folder: Path
    plan: Plan
    statuses: dict[str, str]
    metric: str


@dataclass(frozen=True)
class FleetOpened:
    """A fleet begins to train."""

    number: int
    fleets: int
    trials: tuple[str, ...]
    backbone: str
    facts: BackboneFacts


@dataclass(frozen=True)
class Said:
    """One line about what happens now."""

    text: str


@dataclass(frozen=True)
class Noted:
    """One line that must still be there to read when the run is over."""

    text: str


Notice = Event | RunOpened | FleetOpened | Said | Noted
Watch = Callable[[Notice], None]


def unwatched(notice: Notice) -> None:
    """Does nothing."""
