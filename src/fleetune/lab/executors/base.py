"""What trains a fleet: the runner hands it a job, and records what it reports."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from fleetune.data.dataset import Dataset
from fleetune.engine.config import BackboneConfig
from fleetune.engine.events import Event

if TYPE_CHECKING:
    from fleetune.engine.fleet import FleetData
    from fleetune.engine.generation import CheckpointStore
    from fleetune.engine.trial import TrialSpec


@dataclass(frozen=True)
class FleetJob:
    """All that training one fleet needs.

    Attributes:
        backbone: Which model lies under it.
        num_labels: Number of the classifier's outputs.
        precision: Of the frozen weights and their products.
        specs: The trials; a baseline is alone in its job.
        data: Their texts.
        dataset: The same as strings, for baselines.
        max_tokens: Length at which texts are cut.
        checkpoints: Keeps the fleet's checkpoints, and knows the one to go on from.
        labels: Their names in the order of the outputs.
        checkpoint_seconds: Time between two checkpoints.
        is_stopped: Whether the fleet is to save and end as soon as it can.
    """

    backbone: BackboneConfig
    num_labels: int
    precision: str
    specs: tuple[TrialSpec, ...]
    data: FleetData
    dataset: Dataset
    max_tokens: int
    checkpoints: CheckpointStore
    labels: tuple[str, ...] = ()
    checkpoint_seconds: float = math.inf
    is_stopped: Callable[[], bool] = lambda: False


@dataclass(frozen=True)
class BackboneFacts:
    """What loading a backbone found out; None throughout for a baseline that reads no model.

    Attributes:
        layout: `packed` or `padded`.
        layout_reason: Why.
        precision: `bf16`, `fp32` or `float64`.
        model_hash: SHA-256 of its configuration and weights.
        notes: What a report must say of it.
    """

    layout: str | None
    layout_reason: str | None
    precision: str | None
    model_hash: str | None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class StartedFleet:
    """A fleet that trains while its events are read.

    Attributes:
        facts: What loading the backbone found out.
        events: What happens, each before what follows from it.
        heeds_stop: Whether the events end by themselves, with all of it saved, when the job `is_stopped`; else whoever
            reads them stops reading.
    """

    facts: BackboneFacts
    events: Iterator[Event]
    heeds_stop: bool = False


class Executor(Protocol):
    """Starts fleets."""

    def start(self, job: FleetJob) -> StartedFleet:
        """Returns the fleet of `job`, ready to train.

        Raises:
            BackboneError: If the backbone cannot be loaded.
        """
