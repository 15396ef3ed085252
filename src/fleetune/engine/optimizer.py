"""One trial's optimizer, with its own clipping and schedule."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from fleetune.engine.config import TrainingConfig
from fleetune.engine.optimizers import load_state, rule_for, saved_state
from fleetune.engine.parameters import ParameterGroup, TrialParameters
from fleetune.engine.schedule import learning_rate_at

if TYPE_CHECKING:
    from torch import Tensor


class TrialOptimizer:
    """Steps one trial's parameters by the optimizer that its training names; see `optimizers`.

    Args:
        parameters: What is trained.
        training: Learning rate, decay and the rest.
        total_steps: Length of the schedule.
    """

    def __init__(self, parameters: TrialParameters, training: TrainingConfig, total_steps: int) -> None:
        self.parameters = parameters
        self.training = training
        self.total_steps = total_steps
        rule = rule_for(training)
        groups = [
            {
                "params": [group.buffer] if rule.element_wise else self._tensors_of(group),
                "weight_decay": training.weight_decay if group.decay else 0.0,
            }
            for group in parameters.groups
        ]
        self.optimizer = rule.make(groups, training)

    def _tensors_of(self, group: ParameterGroup) -> list[Tensor]:
        return [self.parameters.tensors[name] for name in group.shapes]

    @property
    def _stepped(self) -> list[Tensor]:
        """Every tensor that the optimizer steps, in order."""
        return [tensor for group in self.optimizer.param_groups for tensor in group["params"]]

    def step(self, finished_steps: int) -> tuple[float, float]:
        """Clips the gradients and makes one optimizer step; the gradients stay.

        Args:
            finished_steps: Optimizer steps made before.

        Returns:
            The gradients' norm before clipping, and the learning rate used.
        """
        norm = self._clip()
        rate = learning_rate_at(finished_steps, self.total_steps, self.training)
        for group, own in zip(self.optimizer.param_groups, self.parameters.groups, strict=True):
            group["lr"] = rate * own.rate
        self.optimizer.step()
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
        """Returns the moments, step counts and whatever else the optimizer keeps; no copies."""
        return {
            f"{number}.{name}": value
            for number, tensor in enumerate(self._stepped)
            for name, value in saved_state(self.optimizer, tensor).items()
        }

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Takes over what `state` returned."""
        for number, tensor in enumerate(self._stepped):
            prefix = f"{number}."
            own = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
            load_state(self.optimizer, tensor, own)
