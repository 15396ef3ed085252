"""How long a trial takes and how much memory it needs, from shapes and a short probe of the machine."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from fleetune.data.dataset import SplitName
from fleetune.engine.config import TrainingConfig
from fleetune.engine.operations import forward_operations, training_operations
from fleetune.methods.base import BackboneShape, Method
from fleetune.runtime import device, pick_precision, torch_dtype

UTILISATION = 0.35
"""Share of the matrix-product peak that training reaches: seen on a MiniLM with short texts on two cores."""
PROCESS_BYTES = 900_000_000
"""Memory of a process with torch and transformers loaded and nothing else."""
BYTES_OF = {"bf16": 2, "fp32": 4, "float64": 8}
TRAINED_COPIES = 5
"""Of each trained value: itself, its gradient, two moments, and the best so far."""


@dataclass(frozen=True)
class Forecast:
    """What one trial is expected to take, alone on this machine.

    Attributes:
        seconds: Training and evaluation, without loading.
        peak_bytes: Memory of the whole process.
        own_bytes: The part that each further trial of a fleet adds.
    """

    seconds: float
    peak_bytes: int
    own_bytes: int


def forecast_trial(
    shape: BackboneShape,
    method: Method,
    training: TrainingConfig,
    lengths: NDArray[np.int64],
    sizes: Mapping[SplitName, int],
) -> Forecast:
    """Returns what a trial of `method` is expected to take.

    Args:
        shape: The backbone's shape.
        method: The method.
        training: Its training.
        lengths: `(texts,)` tokens of each text.
        sizes: Number of texts by split.
    """
    precision = pick_precision(training.precision)
    own = _trained_bytes(shape, method, precision) + _activation_bytes(shape, training, lengths, precision)
    frozen = shape.backbone_parameters * BYTES_OF[precision]
    operations = _operations(shape, method, training, float(lengths.mean()), sizes)
    seconds = operations / (UTILISATION * matrix_product_rate(precision))
    return Forecast(seconds, int(PROCESS_BYTES + frozen + own), int(own))


def _operations(
    shape: BackboneShape, method: Method, training: TrainingConfig, mean_length: float, sizes: Mapping[SplitName, int]
) -> float:
    """Returns floating-point operations of training and every evaluation."""
    train = sizes["train"]
    steps_per_epoch = math.ceil(train / (training.batch_size * training.gradient_accumulation_steps))
    epochs = training.epochs if training.max_steps is None else training.max_steps / steps_per_epoch
    every = steps_per_epoch if training.evaluate_every == "epoch" else training.evaluate_every
    evaluations = math.ceil(epochs * steps_per_epoch / every)
    evaluated = sizes.get("validation", 0) * (evaluations + 1) + sizes.get("test", 0)
    trained = training_operations(shape, method) * epochs * train
    return mean_length * (trained + forward_operations(shape) * evaluated)


def _trained_bytes(shape: BackboneShape, method: Method, precision: str) -> float:
    master = BYTES_OF["float64"] if precision == "float64" else BYTES_OF["fp32"]
    return TRAINED_COPIES * master * (method.expected_parameters(shape) + shape.head_parameters)


def _activation_bytes(
    shape: BackboneShape, training: TrainingConfig, lengths: NDArray[np.int64], precision: str
) -> float:
    """Returns what backward keeps: about three tensors of each linear module's width, for a long batch's tokens."""
    width = sum(site.out_features for site in shape.sites if site.kind == "linear" and site.layer is not None)
    tokens = training.batch_size * float(np.quantile(lengths, 0.9))
    return 3.0 * width * tokens * BYTES_OF[precision]


@cache
def matrix_product_rate(precision: str) -> float:
    """Returns this machine's peak of floating-point operations a second in matrix products, by a short probe."""
    import torch

    tokens, width, inner = 4096, 512, 2048
    x, weight = (torch.randn(rows, width, device=device()).to(torch_dtype(precision)) for rows in (tokens, inner))
    fastest, deadline = math.inf, time.perf_counter() + 0.3
    while time.perf_counter() < deadline:
        started = time.perf_counter()
        torch.nn.functional.linear(x, weight)
        if device().type == "cuda":
            torch.cuda.synchronize()
        fastest = min(fastest, time.perf_counter() - started)
    return 2.0 * tokens * width * inner / fastest
