"""The learning rate as a function of the step."""

from __future__ import annotations

import math

from fleetune.engine.config import TrainingConfig


def warmup_steps(training: TrainingConfig, total_steps: int) -> int:
    """Returns the number of warm-up steps."""
    if training.warmup_steps is not None:
        return training.warmup_steps
    return math.ceil(training.warmup_ratio * total_steps)


def learning_rate_at(step: int, total_steps: int, training: TrainingConfig) -> float:
    """Returns the learning rate of the optimizer step that follows `step` finished ones.

    It rises from 0 to its peak over the warm-up, then falls to 0 by a line or half a cosine wave, or stays.
    """
    warmup = warmup_steps(training, total_steps)
    if step < warmup:
        return training.learning_rate * step / max(1, warmup)
    progress = (step - warmup) / max(1, total_steps - warmup)
    if training.schedule == "constant":
        factor = 1.0
    elif training.schedule == "linear":
        factor = max(0.0, 1.0 - progress)
    else:
        factor = max(0.0, 0.5 * (1.0 + math.cos(math.pi * progress)))
    return training.learning_rate * factor
