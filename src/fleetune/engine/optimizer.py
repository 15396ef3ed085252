"""AdamW for one trial, with its own clipping and schedule."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

from fleetune.engine.config import TrainingConfig
from fleetune.engine.parameters import TrialParameters
from fleetune.engine.schedule import learning_rate_at

if TYPE_CHECKING:
    from torch import Tensor

MOMENTS = ("exp_avg", "exp_avg_sq")


class TrialOptimizer:
    """Steps one trial's parameters (AdamW: Loshchilov & Hutter, 2017, Algorithm 2).

    Args:
        parameters: What is trained.
        training: Learning rate, decay and the rest.
        total_steps: Length of the schedule.
    """

    def __init__(self, parameters: TrialParameters, training: TrainingConfig, total_steps: int) -> None:
        self.parameters = parameters
        self.training = training
        self.total_steps = total_steps
        groups = [
            {"params": [group.buffer], "weight_decay": training.weight_decay if group.decay else 0.0}
            for group in parameters.groups
        ]
        self.adamw = torch.optim.AdamW(
            groups, lr=training.learning_rate, betas=training.betas, eps=training.adam_epsilon
        )

    def step(self, finished_steps: int) -> tuple[float, float]:
        """Clips the gradients and makes one optimizer step; the gradients stay.

        Args:
            finished_steps: Optimizer steps made before.

        Returns:
            The gradients' norm before clipping, and the learning rate used.
        """
        norm = self._clip()
        rate = learning_rate_at(finished_steps, self.total_steps, self.training)
        for group, own in zip(self.adamw.param_groups, self.parameters.groups, strict=True):
            group["lr"] = rate * own.rate
        self.adamw.step()
        return norm, rate

    def _clip(self) -> float:
        norm = float(self.parameters.gradient_norm())
        limit = self.training.max_grad_norm
        if limit > 0.0:
            # As torch.nn.utils.clip_grad_norm_ has it, so that a plain loop gives the same digits.
            factor = limit / (norm + 1e-6)
            if factor < 1.0:
                self.parameters.scale_gradients(factor)
        return norm

    def state(self) -> dict[str, Tensor]:
        """Returns a copy of the moments and the step count."""
        tensors = {}
        for number, group in enumerate(self.parameters.groups):
            for name in (*MOMENTS, "step"):
                if name in self.adamw.state[group.buffer]:
                    tensors[f"{number}.{name}"] = self.adamw.state[group.buffer][name].detach().clone()
        return tensors

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Takes over moments and step count."""
        for number, group in enumerate(self.parameters.groups):
            for name in (*MOMENTS, "step"):
                if f"{number}.{name}" in state:
                    self.adamw.state[group.buffer][name] = state[f"{number}.{name}"].clone()
