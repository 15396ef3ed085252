"""How long a trial takes, and in how much memory: by a probe, and where that is too late, from shapes alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fleetune.data.dataset import SplitName
from fleetune.engine.config import TrainingConfig
from fleetune.engine.fleet import FleetData
from fleetune.engine.lanes import lanes
from fleetune.engine.probe import Probe, largest_batch
from fleetune.methods.base import BackboneShape, Method
from fleetune.runtime import device, pick_precision

MOST_TRIALS = {"cpu": 16, "cuda": 64}
"""In a fleet. More would not be faster, and all of a fleet's trials end at its end."""
ROOM = 0.85
"""Share of the available memory that a fleet is to fill."""
BYTES_OF = {"bf16": 2, "fp32": 4, "float64": 8}
TRAINED_COPIES = 7
"""Of each trained value: itself, its gradient, another lane's part of it, two moments, the best so far and the last."""
LAYER_TENSORS = 3.0
"""Tensors as wide as a layer's linear modules together that its backward pass keeps, and those under way."""


@dataclass(frozen=True)
class Forecast:
    """What a trial or a fleet is expected to take.

    Attributes:
        seconds: Training and evaluation, without loading. Of a trial: its share of its fleet's time.
        peak_bytes: Memory of the whole process, or of the GPU.
    """

    seconds: float
    peak_bytes: int


def forecast_trial(
    probe: Probe, side_by_side: int, shape: BackboneShape, method: Method, training: TrainingConfig, data: FleetData
) -> Forecast:
    """Returns what a trial is expected to take: its share of the time, and the memory as if it trained alone.

    Args:
        probe: What a few steps of it took.
        side_by_side: How many trials the probe trained together.
        shape: The backbone's shape.
        method: The method.
        training: Its training.
        data: Its texts.
    """
    lengths = data.tokens.lengths
    trained, evaluations = _texts_and_evaluations(training, len(data.splits["train"]))
    train_tokens = trained * float(lengths[data.splits["train"]].mean())
    evaluated_tokens = evaluations * _tokens(data, "validation") + _tokens(data, "test")
    seconds = train_tokens * probe.train_seconds + evaluated_tokens * probe.evaluation_seconds
    further = (side_by_side - 1) * trained_bytes(shape, method, training.precision)
    missing = max(0, largest_batch(data, training.batch_size) - probe.batch_tokens)
    more = lanes().count * missing * activation_bytes(shape, training.precision)
    return Forecast(seconds, int(probe.peak_bytes - further + more))


def _texts_and_evaluations(training: TrainingConfig, train: int) -> tuple[float, int]:
    """Returns how many texts a trial is trained on, repeated ones counted, and how often it is evaluated."""
    steps_per_epoch = math.ceil(train / (training.batch_size * training.gradient_accumulation_steps))
    steps = training.max_steps or max(1, math.ceil(training.epochs * steps_per_epoch))
    every = steps_per_epoch if training.evaluate_every == "epoch" else training.evaluate_every
    return steps / steps_per_epoch * train, math.ceil(steps / every)


def _tokens(data: FleetData, split: SplitName) -> int:
    return int(data.tokens.lengths[data.splits.get(split, np.empty(0, np.int64))].sum())


def trained_bytes(shape: BackboneShape, method: Method, precision: str) -> int:
    """Returns the memory of what one trial trains, with the optimizer's state."""
    master = BYTES_OF["float64"] if pick_precision(precision) == "float64" else BYTES_OF["fp32"]
    return TRAINED_COPIES * master * (method.expected_parameters(shape) + shape.head_parameters)


def activation_bytes(shape: BackboneShape, precision: str) -> float:
    """Returns what the backward pass keeps of one token."""
    width = sum(site.out_features for site in shape.sites if site.kind == "linear" and site.layer is not None)
    return LAYER_TENSORS * width * BYTES_OF[pick_precision(precision)]


@dataclass(frozen=True)
class Candidate:
    """What decides whether a trial fits into a fleet: its method, its training, and how long its texts may be."""

    method: Method
    training: TrainingConfig
    max_tokens: int


def fits(shape: BackboneShape, fleet: Sequence[Candidate], available: int) -> bool:
    """Returns whether trials can train together in the memory that there is.

    Args:
        shape: The shape of their backbone.
        fleet: The trials.
        available: Bytes that the device has free.
    """
    if len(fleet) > MOST_TRIALS[device().type]:
        return False
    precision = fleet[0].training.precision
    frozen = shape.backbone_parameters * BYTES_OF[pick_precision(precision)]
    own = sum(trained_bytes(shape, one.method, precision) for one in fleet)
    batches = sorted(one.training.batch_size * one.max_tokens for one in fleet)
    # On a processor each lane works on one batch, on a GPU all are worked on at a time.
    working = batches[-lanes().count :] if device().type == "cpu" else batches
    return frozen + own + sum(working) * activation_bytes(shape, precision) <= ROOM * available
