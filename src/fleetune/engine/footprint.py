"""Memory that training takes, from shapes alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fleetune.engine.config import TrainingConfig
from fleetune.engine.lanes import lanes
from fleetune.methods.base import BackboneShape, Method
from fleetune.runtime import device, pick_precision

MOST_TRIALS = {"cpu": 16, "cuda": 64}
"""In a fleet. More would not be faster, and all of a fleet's trials end at its end."""
ROOM = 0.85
"""Share of the available memory that a fleet is to fill."""
BYTES_OF = {"bf16": 2, "fp32": 4, "float64": 8}
TRAINED_COPIES = 7
"""Of each trained value: itself, its gradient, another lane's part of it, two moments, the best so far and the last."""
KEPT_COPIES = 3
"""Of each value that a trial only keeps: itself, the best so far and the last."""
LAYER_TENSORS = 3.0
"""Tensors as wide as a layer's linear modules together that its backward pass keeps, and those under way."""


def trained_bytes(shape: BackboneShape, method: Method, precision: str) -> int:
    """Returns the memory of what one trial trains, with the optimizer's state."""
    master = BYTES_OF["float64"] if pick_precision(precision) == "float64" else BYTES_OF["fp32"]
    every = [spec for specs in method.specs(shape).values() for spec in specs.values()]
    kept = sum(spec.size for spec in every if not spec.trained)
    trained = sum(spec.size for spec in every if spec.trained) + shape.head_parameters
    return master * (TRAINED_COPIES * trained + KEPT_COPIES * kept)


def activation_bytes(shape: BackboneShape, precision: str) -> float:
    """Returns what the backward pass keeps of one token."""
    width = sum(site.out_features for site in shape.sites if site.kind == "linear" and site.layer is not None)
    return LAYER_TENSORS * width * BYTES_OF[pick_precision(precision)]


@dataclass(frozen=True)
class Candidate:
    """What decides whether a trial fits into a fleet.

    Attributes:
        method: Its method.
        training: How it is trained.
        max_tokens: How many tokens a text may have; in all its windows, where it is read in windows.
    """

    method: Method
    training: TrainingConfig
    max_tokens: int


def fleet_bytes(shape: BackboneShape, fleet: Sequence[Candidate]) -> int:
    """Returns the memory that trials need together, their frozen backbone included."""
    precision = fleet[0].training.precision
    frozen = shape.backbone_parameters * BYTES_OF[pick_precision(precision)]
    own = sum(trained_bytes(shape, one.method, precision) for one in fleet)
    batches = sorted(one.training.batch_size * (one.max_tokens + one.method.virtual_tokens) for one in fleet)
    # On a processor each lane works on one batch, on a GPU all are worked on at a time.
    working = batches[-lanes().count :] if device().type == "cpu" else batches
    return frozen + own + int(sum(working) * activation_bytes(shape, precision))


def fits(shape: BackboneShape, fleet: Sequence[Candidate], available: int) -> bool:
    """Returns whether trials can train together.

    Args:
        shape: The shape of their backbone.
        fleet: The trials.
        available: Bytes that the device has free before the backbone is loaded.
    """
    return len(fleet) <= MOST_TRIALS[device().type] and fleet_bytes(shape, fleet) <= ROOM * available
