"""VeRA: vectors that scale one pair of random matrices, shared by all layers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from pydantic import Field

from fleetune.methods.base import (
    BackboneShape,
    Method,
    MethodConfig,
    ParameterSpec,
    Site,
    SiteCall,
)
from fleetune.methods.lora import targets_of
from fleetune.methods.registry import register

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

A, B, D_VECTOR, B_VECTOR = "vera_A", "vera_B", "vera_lambda_d", "vera_lambda_b"


@register("vera", source="Kopiczko et al., 2023, arXiv:2310.11454")
class VeRA(Method):
    """Adds b ⊙ B · (d ⊙ A · x): A and B random, frozen and shared by all layers (Kopiczko et al., 2023, equation 2)."""

    class Config(MethodConfig):
        """VeRA's settings."""

        rank: int = Field(default=256, ge=1)
        """Inner dimension; since only vectors are trained, it is larger than LoRA's."""
        d_initial: float = 0.1
        """Start of d."""
        dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
        """Dropout on the update's input."""
        target_modules: tuple[str, ...] | None = None
        """Linear modules by the end of their name, or `all-linear`; query and value where absent."""
        layers: tuple[int, ...] | None = None
        """Layers whose modules are targets; negative ones count from the top. All where absent."""

    config: Config

    def sites(self, shape: BackboneShape) -> list[Site]:
        """Returns the targets; query and value (or the fused query-key-value) by default."""
        return targets_of(shape, self.config.target_modules, self.config.layers, self.kind)

    def parameters(self, site: Site) -> dict[str, ParameterSpec]:
        """Returns d, at `d_initial`, and b, zero."""
        return {
            D_VECTOR: ParameterSpec((self.config.rank,), initial="computed"),
            B_VECTOR: ParameterSpec((site.out_features,), initial="zeros"),
        }

    def shared(self, shape: BackboneShape) -> dict[str, ParameterSpec]:
        """Returns A and B, as large as the largest target; smaller ones use their first columns and rows."""
        sites = self.sites(shape)
        widest, highest = max(site.in_features for site in sites), max(site.out_features for site in sites)
        return {
            A: ParameterSpec((self.config.rank, widest), initial="he_uniform", trained=False),
            B: ParameterSpec((highest, self.config.rank), initial="he_uniform", trained=False),
        }

    def starts(self, site: Site, frozen: Callable[[str], Tensor], random: np.random.Generator) -> dict[str, Tensor]:
        """Returns d."""
        import torch

        return {D_VECTOR: torch.full((self.config.rank,), self.config.d_initial)}

    def forward(
        self, x: Tensor, output: Tensor, parameters: Mapping[str, Tensor], site: Site, call: SiteCall
    ) -> Tensor:
        """Returns W·x + b ⊙ B·(d ⊙ A·dropout(x))."""
        down = call.dropout(x, self.config.dropout) @ parameters[A][:, : site.in_features].T
        up = (down * parameters[D_VECTOR]) @ parameters[B][: site.out_features].T
        return output + up * parameters[B_VECTOR]

    def merged(self, parameters: Mapping[str, Tensor], site: Site, frozen: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Returns W + diag(b) · B · diag(d) · A."""
        down = parameters[A][:, : site.in_features] * parameters[D_VECTOR][:, None]
        up = parameters[B][: site.out_features] * parameters[B_VECTOR][:, None]
        return {"weight": frozen["weight"] + up @ down}

    def to_peft(self, sites: Iterable[Site]) -> dict[str, Any]:
        """Returns the fields of PEFT's `VeraConfig`; A and B are stored, not drawn again."""
        return {
            "peft_type": "VERA",
            "r": self.config.rank,
            "d_initial": self.config.d_initial,
            "vera_dropout": self.config.dropout,
            "target_modules": [site.name for site in sites],
            "save_projection": True,
        }
