"""Full fine-tuning: every parameter of the backbone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from pydantic import Field

from fleetune.errors import MethodError
from fleetune.methods.base import BackboneShape, Method, MethodConfig, ParameterSpec, Site, SiteCall
from fleetune.methods.registry import register

if TYPE_CHECKING:
    from torch import Tensor


@register("full", source="Devlin et al., 2018, arXiv:1810.04805")
class Full(Method):
    """Trains a copy of every parameter of the backbone (Devlin et al., 2018, section 3.2)."""

    class Config(MethodConfig):
        """Full fine-tuning's settings."""

        layer_decay: float = Field(default=1.0, gt=0.0, le=1.0)
        """Each layer's learning rate is that of the layer above times this (Howard & Ruder, 2018, arXiv:1801.06146,
        section 3.2); the head has the whole one."""
        frozen_layers: int = Field(default=0, ge=0)
        """This many layers from below stay frozen, and the embeddings with them; 0 trains all."""

    config: Config
    shares_backbone = False
    replaces_output = True

    def sites(self, shape: BackboneShape) -> list[Site]:
        """Returns every site that has parameters and lies above the frozen layers."""
        count = shape.sites[0].num_layers
        if self.config.frozen_layers > count:
            raise MethodError(
                f"frozen_layers = {self.config.frozen_layers}: this {shape.model_type} has {count} layers"
            )
        lowest = self.config.frozen_layers or -1
        return [site for site in shape.sites if site.shapes and _depth(site) >= lowest]

    def parameters(self, site: Site) -> dict[str, ParameterSpec]:
        """Returns the module's own parameters, starting as they are; norms and biases do not decay."""
        rate = self.config.layer_decay ** (site.num_layers - _depth(site))
        return {
            name: ParameterSpec(shape, "frozen", decay=site.kind != "norm" and name != "bias", rate=rate)
            for name, shape in site.shapes.items()
        }

    @property
    def is_plain(self) -> bool:
        """True: every parameter is the backbone's own."""
        return True

    def forward(
        self, x: Tensor, output: Tensor, parameters: Mapping[str, Tensor], site: Site, call: SiteCall
    ) -> Tensor:
        """Returns the module's output with the trial's copy of its parameters."""
        return call.replaced(x, parameters)

    def merged(self, parameters: Mapping[str, Tensor], site: Site, frozen: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return dict(parameters)


def _depth(site: Site) -> int:
    """Returns the site's layer; -1 for what all layers read, the number of layers for what follows them."""
    if site.layer is not None:
        return site.layer
    return -1 if "embed" in site.name or ".encoder." in site.name else site.num_layers
