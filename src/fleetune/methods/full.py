"""Full fine-tuning: every parameter of the backbone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from fleetune.methods.base import BackboneShape, Method, ParameterSpec, Site, SiteCall
from fleetune.methods.registry import register

if TYPE_CHECKING:
    from torch import Tensor


@register("full", source="Devlin et al., 2018, arXiv:1810.04805")
class Full(Method):
    """Trains a copy of every parameter of the backbone (Devlin et al., 2018, section 3.2)."""

    shares_backbone = False
    replaces_output = True

    def sites(self, shape: BackboneShape) -> list[Site]:
        """Returns every site that has parameters."""
        return [site for site in shape.sites if site.shapes]

    def parameters(self, site: Site) -> dict[str, ParameterSpec]:
        """Returns the module's own parameters, starting as they are; norms and biases do not decay."""
        return {
            name: ParameterSpec(shape, initial="frozen", decay=site.kind != "norm" and name != "bias")
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
