"""Memory that training takes, from shapes alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fleetune.engine.config import BackboneConfig, TrainingConfig
from fleetune.engine.lanes import lanes
from fleetune.engine.optimizers import rule_for
from fleetune.engine.storage import BYTES_OF, frozen_bytes, working_bytes
from fleetune.methods.base import BackboneShape, Method, Site
from fleetune.runtime import device, pick_precision

MOST_TRIALS = {"cpu": 16, "cuda": 64}
"""In a fleet. More would not be faster, and all of a fleet's trials end at its end."""
ROOM = 0.85
"""Share of the available memory that a fleet is to fill."""
TRAINED_COPIES = 5
"""Of each trained value: itself, its gradient, another lane's part of it, the best so far and the last. The optimizer's
state comes on top."""
KEPT_COPIES = 3
"""Of each value that a trial only keeps: itself, the best so far and the last."""
LAYER_TENSORS = 3.0
"""Tensors as wide as a layer's linear modules together that its backward pass keeps, and those under way."""


def trained_bytes(shape: BackboneShape, method: Method, training: TrainingConfig) -> int:
    """Returns the memory of what one trial trains, with the optimizer's state."""
    master = BYTES_OF["float64"] if pick_precision(training.precision) == "float64" else BYTES_OF["fp32"]
    every = [spec for specs in method.specs(shape).values() for spec in specs.values()]
    kept = sum(spec.size for spec in every if not spec.trained)
    trained = sum(spec.size for spec in every if spec.trained) + shape.head_parameters
    copies = TRAINED_COPIES + rule_for(training).state_copies
    return int(master * (copies * trained + KEPT_COPIES * kept))


def activation_bytes(shape: BackboneShape, precision: str, checkpointing: bool = False) -> float:
    """Returns what the backward pass keeps of one token; with checkpointing each layer's input, and a layer."""
    layers: dict[int, list[Site]] = {}
    for site in shape.sites:
        if site.kind == "linear" and site.layer is not None:
            layers.setdefault(site.layer, []).append(site)
    widths = [sum(site.out_features for site in sites) for sites in layers.values()]
    kept = LAYER_TENSORS * sum(widths)
    if checkpointing:
        kept = LAYER_TENSORS * max(widths, default=0) + sum(sites[0].in_features for sites in layers.values())
    return kept * BYTES_OF[pick_precision(precision)]


@dataclass(frozen=True)
class Candidate:
    """What decides whether a trial fits into a fleet.

    Attributes:
        method: Its method.
        training: How it is trained.
        max_tokens: How many tokens a text may have; in all its windows, where it is read in windows.
        backbone: How the frozen weights are kept.
    """

    method: Method
    training: TrainingConfig
    max_tokens: int
    backbone: BackboneConfig | None = None


def fleet_bytes(shape: BackboneShape, fleet: Sequence[Candidate], available: int = 0) -> int:
    """Returns the memory that trials need together, their frozen backbone included.

    Args:
        shape: The shape of their backbone.
        fleet: The trials.
        available: Bytes that the device has free before the backbone is loaded.
    """
    precision, backbone = fleet[0].training.precision, fleet[0].backbone
    frozen = frozen_bytes(shape, backbone, precision, available)
    own = sum(trained_bytes(shape, one.method, one.training) for one in fleet)
    batches = sorted(
        one.training.batch_size
        * (one.max_tokens + one.method.virtual_tokens)
        * activation_bytes(shape, precision, one.training.gradient_checkpointing)
        for one in fleet
    )
    # On a processor each lane works on one batch, on a GPU all are worked on at a time.
    working = batches[-lanes().count :] if device().type == "cpu" else batches
    restored = lanes().count * working_bytes(shape, backbone, precision, available)
    return frozen + own + restored + int(sum(working))


def fits(shape: BackboneShape, fleet: Sequence[Candidate], available: int) -> bool:
    """Returns whether trials can train together.

    Args:
        shape: The shape of their backbone.
        fleet: The trials.
        available: Bytes that the device has free before the backbone is loaded.
    """
    return len(fleet) <= MOST_TRIALS[device().type] and fleet_bytes(shape, fleet, available) <= ROOM * available
