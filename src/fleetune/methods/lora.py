"""LoRA: a low-rank update beside a frozen linear layer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from pydantic import Field

from fleetune.errors import MethodError
from fleetune.methods.base import (
    BackboneShape,
    Method,
    MethodConfig,
    ParameterSpec,
    Site,
    SiteCall,
    match_targets,
    with_roles,
)
from fleetune.methods.registry import register

if TYPE_CHECKING:
    from torch import Tensor


@register("lora", source="Hu et al., 2021, arXiv:2106.09685")
class LoRA(Method):
    """Adds (alpha / rank) · B · A to a frozen weight, A and B of the given rank (Hu et al., 2021, section 4.1)."""

    class Config(MethodConfig):
        """LoRA's settings."""

        rank: int = Field(default=8, ge=1)
        """Inner dimension of the update."""
        alpha: float = Field(default=16.0, gt=0.0)
        """The update is scaled by alpha / rank."""
        dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
        """Dropout on the update's input."""
        target_modules: tuple[str, ...] | None = None
        """Linear modules by the end of their name, or `all-linear`; query and value where absent."""

    config: Config

    def sites(self, shape: BackboneShape) -> list[Site]:
        """Returns the targets; query and value (or the fused query-key-value) by default."""
        if self.config.target_modules is not None:
            return match_targets(shape, self.config.target_modules)
        sites = with_roles(shape, "query", "value", "query_key_value")
        if not sites:
            raise MethodError(f"lora has no default targets for {shape.model_type}; name them: target_modules = […]")
        return sites

    def parameters(self, site: Site) -> dict[str, ParameterSpec]:
        """Returns A, uniform at random, and B, zero."""
        return {
            "lora_A": ParameterSpec((self.config.rank, site.in_features), initial="kaiming_uniform"),
            "lora_B": ParameterSpec((site.out_features, self.config.rank), initial="zeros"),
        }

    def forward(
        self, x: Tensor, output: Tensor, parameters: Mapping[str, Tensor], site: Site, call: SiteCall
    ) -> Tensor:
        """Returns W·x + b + (alpha / rank) · B·A·dropout(x)."""
        down = call.dropout(x, self.config.dropout) @ parameters["lora_A"].T
        return output + (down * (self.config.alpha / self.config.rank)) @ parameters["lora_B"].T

    def merged(self, parameters: Mapping[str, Tensor], site: Site, frozen: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Returns W + (alpha / rank) · B·A."""
        update = parameters["lora_B"] @ parameters["lora_A"] * (self.config.alpha / self.config.rank)
        return {"weight": frozen["weight"] + update}

    def to_peft(self, sites: Iterable[Site]) -> dict[str, Any]:
        """Returns the fields of PEFT's `LoraConfig`; modules by full name, so that no other matches by suffix."""
        return {
            "peft_type": "LORA",
            "r": self.config.rank,
            "lora_alpha": self.config.alpha,
            "lora_dropout": self.config.dropout,
            "target_modules": [site.name for site in sites],
            "bias": "none",
        }

    def peft_name(self, site: str, parameter: str) -> str:
        """Returns `….lora_A.weight` or `….lora_B.weight`."""
        return f"{super().peft_name(site, parameter)}.weight"
