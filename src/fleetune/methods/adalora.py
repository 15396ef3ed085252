"""AdaLoRA: a rank for each module, found while training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from pydantic import Field, model_validator

from fleetune.methods.base import (
    BackboneShape,
    Method,
    MethodConfig,
    ParameterSpec,
    Site,
    SiteCall,
)
from fleetune.methods.lora import LoRA, targets_of
from fleetune.methods.registry import register

if TYPE_CHECKING:
    from torch import Tensor

A, B, E = "lora_A", "lora_B", "lora_E"
TRAINED = (A, B, E)
KEPT = "kept"
"""1 for each direction that the budget keeps, 0 for the others."""
SENSITIVITY, UNCERTAINTY = "sensitivity_of_", "uncertainty_of_"


@register("adalora", source="Zhang et al., 2023, arXiv:2303.10512")
class AdaLoRA(Method):
    """Adds (alpha / rank) · P · Λ · Q and lets the less important directions go (Zhang et al., 2023, Algorithm 1).

    P is `lora_B`, the diagonal of Λ is `lora_E`, Q is `lora_A`. All modules share one budget of directions, which falls
    from `rank` to `target_rank` a module by a cubic schedule.
    """

    class Config(MethodConfig):
        """AdaLoRA's settings."""

        rank: int = Field(default=12, ge=1)
        """Directions of each module at the start."""
        target_rank: int = Field(default=8, ge=1)
        """Directions of each module at the end, on average."""
        alpha: float = Field(default=32.0, gt=0.0)
        """The update is scaled by alpha / rank."""
        dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
        """Dropout on the update's input."""
        target_modules: tuple[str, ...] | None = None
        """Linear modules by the end of their name, or `all-linear`; query and value where absent."""
        layers: tuple[int, ...] | None = None
        """Layers whose modules are targets; negative ones count from the top. All where absent."""
        initial_share: float = Field(default=0.1, ge=0.0, lt=1.0)
        """Share of the steps before the budget begins to fall."""
        final_share: float = Field(default=0.3, ge=0.0, lt=1.0)
        """Share of the steps after it has fallen."""
        allocate_every: int = Field(default=10, ge=1)
        """Steps between two allocations of the budget."""
        beta1: float = Field(default=0.85, gt=0.0, lt=1.0)
        """Smoothing of the sensitivity (equation 9)."""
        beta2: float = Field(default=0.85, gt=0.0, lt=1.0)
        """Smoothing of its uncertainty (equation 10)."""
        orthogonality: float = Field(default=0.5, ge=0.0)
        """Weight in the loss of P's and Q's distance from orthogonal matrices (equation 4)."""

        @model_validator(mode="after")
        def _budget_falls(self) -> AdaLoRA.Config:
            if self.target_rank > self.rank:
                raise ValueError(f"target_rank = {self.target_rank} must not be above rank = {self.rank}")
            if self.initial_share + self.final_share >= 1.0:
                raise ValueError("initial_share and final_share together must be below 1")
            return self

    config: Config
    has_penalty = True

    def sites(self, shape: BackboneShape) -> list[Site]:
        """Returns the targets; query and value (or the fused query-key-value) by default."""
        return targets_of(shape, self.config.target_modules, self.config.layers, self.kind)

    def parameters(self, site: Site) -> dict[str, ParameterSpec]:
        """Returns P and Q, normal at random, Λ, zero, and what the allocation of the budget remembers."""
        shapes = {
            A: (self.config.rank, site.in_features),
            B: (site.out_features, self.config.rank),
            E: (self.config.rank, 1),
        }
        trained = {name: ParameterSpec(shape, "zeros" if name == E else "normal") for name, shape in shapes.items()}
        remembered = {
            average + name: ParameterSpec(shape, "zeros", trained=False)
            for name, shape in shapes.items()
            for average in (SENSITIVITY, UNCERTAINTY)
        }
        return trained | remembered | {KEPT: ParameterSpec((self.config.rank, 1), "ones", trained=False)}

    @property
    def scale(self) -> float:
        """Factor of the update."""
        return self.config.alpha / self.config.rank

    def forward(
        self, x: Tensor, output: Tensor, parameters: Mapping[str, Tensor], site: Site, call: SiteCall
    ) -> Tensor:
        """Returns W·x + b + (alpha / rank) · P·Λ·Q·dropout(x)."""
        down = call.dropout(x, self.config.dropout) @ (parameters[A] * parameters[E]).T
        return output + (down * self.scale) @ parameters[B].T

    def penalty(self, parameters: Mapping[str, Mapping[str, Tensor]]) -> Tensor:
        """Returns the weighted mean over P and Q of ‖P'P − I‖ and ‖QQ' − I‖ (equation 4, as PEFT has it)."""
        import torch

        grams = [own[A] @ own[A].T for own in parameters.values()] + [own[B].T @ own[B] for own in parameters.values()]
        identity = torch.eye(self.config.rank, dtype=grams[0].dtype, device=grams[0].device)
        return self.config.orthogonality * torch.stack([(gram - identity).norm() for gram in grams]).mean()

    def after_step(self, parameters: Mapping[str, Mapping[str, Tensor]], step: int, total_steps: int) -> None:
        """Takes note of each direction's importance, and sets Λ to zero where the budget does not reach."""
        start, end = self._falling(total_steps)
        if step <= end:
            for own in parameters.values():
                self._remember(own)
        due = step == end or (start < step < end and step % self.config.allocate_every == 0)
        if due:
            self._allocate(parameters, self._budget(step, total_steps) * len(parameters))
        # Between allocations what was set to zero may grow again, and earn its place back; after the last one not.
        if due or step > end:
            for own in parameters.values():
                own[E].mul_(own[KEPT])

    def _falling(self, total_steps: int) -> tuple[int, int]:
        """Returns the steps after which the budget begins to fall, and at which it has fallen."""
        start = round(self.config.initial_share * total_steps)
        return start, max(start + 1, round((1.0 - self.config.final_share) * total_steps))

    def _budget(self, step: int, total_steps: int) -> float:
        """Returns the directions of each module, on average, after `step` steps (equation 12)."""
        start, end = self._falling(total_steps)
        left = 1.0 - min(1.0, (step - start) / (end - start))
        return self.config.target_rank + (self.config.rank - self.config.target_rank) * left**3

    def _remember(self, own: Mapping[str, Tensor]) -> None:
        """Smooths the sensitivity |w · ∂L/∂w| of each value, and its deviation from that (equations 8 to 10)."""
        for name in TRAINED:
            gradient = own[name].grad
            if gradient is None:
                continue
            now, average, deviation = (own[name] * gradient).abs(), own[SENSITIVITY + name], own[UNCERTAINTY + name]
            average.mul_(self.config.beta1).add_(now, alpha=1.0 - self.config.beta1)
            deviation.mul_(self.config.beta2).add_((now - average).abs(), alpha=1.0 - self.config.beta2)

    def _allocate(self, parameters: Mapping[str, Mapping[str, Tensor]], budget: float) -> None:
        """Keeps the `budget` most important directions of all modules together."""
        import torch

        scores = [_importance(own) for own in parameters.values()]
        every = torch.cat(scores)
        kept = torch.zeros_like(every)
        # A stable order decides between equals, so that a resumed trial keeps the same ones.
        kept[every.argsort(descending=True, stable=True)[: int(budget)]] = 1.0
        for own, part in zip(parameters.values(), kept.split([len(score) for score in scores]), strict=True):
            own[KEPT].copy_(part[:, None])

    def stored(self, tensors: Mapping[str, Mapping[str, Tensor]]) -> tuple[Method, dict[str, Mapping[str, Tensor]]]:
        """Returns plain LoRA, Λ worked into A: nothing of the allocation is needed any more."""
        shared = ("rank", "alpha", "dropout", "target_modules", "layers")
        method = LoRA(**{name: self.settings[name] for name in shared})
        return method, {place: {A: own[A] * own[E], B: own[B]} for place, own in tensors.items()}

    def merged(self, parameters: Mapping[str, Tensor], site: Site, frozen: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Returns W + (alpha / rank) · P·Λ·Q."""
        update = parameters[B] @ (parameters[A] * parameters[E])
        return {"weight": frozen["weight"] + self.scale * update}


def _importance(own: Mapping[str, Tensor]) -> Tensor:
    """Returns the score `(rank,)` of each direction: that of Λ and the means of P's column and Q's row (equation 7)."""
    scores = {name: own[SENSITIVITY + name] * own[UNCERTAINTY + name] for name in TRAINED}
    return scores[E][:, 0] + scores[A].mean(dim=1) + scores[B].mean(dim=0)
