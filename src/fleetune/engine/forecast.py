"""How long a trial takes, and in how much memory: by a probe, or from shapes alone where a probe would not fit."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from fleetune.data.dataset import SplitName
from fleetune.engine.config import TrainingConfig
from fleetune.engine.fleet import FleetData
from fleetune.engine.footprint import activation_bytes, trained_bytes
from fleetune.engine.operations import forward_operations, matrix_product_rate, training_operations
from fleetune.engine.probe import Probe
from fleetune.methods.base import BackboneShape, Method
from fleetune.runtime import device, pick_precision

GROWTH = {"cpu": 1.08, "cuda": 1.0}
"""Memory after hundreds of steps over a probe's: fragments of the allocator, code for further sizes of batches."""
BYTES_OF_AN_EVALUATED_TEXT = 64
"""Its number, length and place in the order of evaluation, several times over."""
BYTES_OF_AN_EVALUATED_VALUE = 64
"""Of one trial's logits while metrics are computed: in double precision, sorted, compared with thresholds."""
UTILISATION = 0.5
"""Share of the matrix-product peak that training reaches, where no probe says better."""


@dataclass(frozen=True)
class Forecast:
    """What a trial or a fleet is expected to take.

    Attributes:
        seconds: Training and evaluation, without loading. Of a trial: its share of its fleet's time.
        peak_bytes: Memory of the whole process, or of the GPU. Of a trial: while it trains without the rest of its
            fleet, all lanes busy.
    """

    seconds: float
    peak_bytes: int


def forecast_by_probe(
    probe: Probe, shape: BackboneShape, method: Method, training: TrainingConfig, data: FleetData
) -> Forecast:
    """Returns what a trial is expected to take, given what a few steps of it, or of one much like it, took."""
    train_tokens, evaluated_tokens = _tokens(training, data)
    seconds = train_tokens * probe.train_seconds + evaluated_tokens * probe.evaluation_seconds
    each = activation_bytes(shape, training.precision, training.gradient_checkpointing)
    more = probe.trials * probe.missing_tokens * each
    own = trained_bytes(shape, method, training)
    peak = GROWTH[device().type] * (probe.peak_bytes - probe.trained_bytes + own + more)
    return Forecast(seconds, int(peak))


def forecast_by_shape(
    needed_bytes: int, shape: BackboneShape, method: Method, training: TrainingConfig, data: FleetData
) -> Forecast:
    """Returns what a trial would take that needs `needed_bytes`, more than can be tried."""
    train_tokens, evaluated_tokens = _tokens(training, data)
    each, forward = training_operations(shape, method), forward_operations(shape)
    again = forward if training.gradient_checkpointing else 0.0
    operations = train_tokens * (each + again) + evaluated_tokens * forward
    rate = UTILISATION * matrix_product_rate(pick_precision(training.precision))
    return Forecast(operations / rate, needed_bytes)


def order_bytes(data: FleetData) -> int:
    """Returns the memory of the order in which one trial sees its training texts."""
    return np.dtype(np.int64).itemsize * len(data.splits["train"])


def text_bytes(data: FleetData, num_labels: int) -> int:
    """Returns the memory that grows with the number of texts and that a probe, which sees a few of them, does not take.

    Token ids are mapped from a file, but count as resident once they have been read.

    Args:
        data: The texts.
        num_labels: Number of the classifier's outputs.
    """
    held_out = max(len(data.splits.get(split, ())) for split in ("validation", "test"))
    evaluated = BYTES_OF_AN_EVALUATED_TEXT + BYTES_OF_AN_EVALUATED_VALUE * num_labels
    return data.tokens.nbytes + held_out * evaluated


def _tokens(training: TrainingConfig, data: FleetData) -> tuple[float, float]:
    """Returns how many tokens a trial is trained on, repeated ones counted, and how many it evaluates."""
    train = len(data.splits["train"])
    steps = training.total_steps(train)
    evaluations = math.ceil(steps / training.steps_between_evaluations(train))
    trained = steps / training.steps_per_epoch(train) * _tokens_of(data, "train")
    return trained, evaluations * _tokens_of(data, "validation") + _tokens_of(data, "test")


def _tokens_of(data: FleetData, split: SplitName) -> int:
    return int(data.tokens.lengths[data.splits.get(split, np.empty(0, np.int64))].sum())
