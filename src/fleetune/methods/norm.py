"""Norm tuning: gain and bias of the backbone's norms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from fleetune.errors import MethodError
from fleetune.methods.base import BackboneShape, Method, ParameterSpec, Site, SiteCall
from fleetune.methods.registry import register

if TYPE_CHECKING:
    from torch import Tensor


@register("norm", source="Zhao et al., 2023, arXiv:2312.11420")
class Norm(Method):
    """Trains gain and bias of every norm of the backbone (Zhao et al., 2023, section 3)."""

    replaces_output = True

    def sites(self, shape: BackboneShape) -> list[Site]:
        """Returns the norms."""
        sites = [site for site in shape.sites if site.kind == "norm" and site.shapes]
        if not sites:
            raise MethodError(f"norm trains gains and biases of norms, and this {shape.model_type} has none to train")
        return sites

    def parameters(self, site: Site) -> dict[str, ParameterSpec]:
        """Returns the norm's own parameters, starting as they are."""
        return {name: ParameterSpec(shape, initial="frozen", decay=False) for name, shape in site.shapes.items()}

    @property
    def is_plain(self) -> bool:
        """True: gains and biases are the backbone's own."""
        return True

    def forward(
        self, x: Tensor, output: Tensor, parameters: Mapping[str, Tensor], site: Site, call: SiteCall
    ) -> Tensor:
        """Returns the norm of `x` with the trial's gain and bias."""
        return call.replaced(x, parameters)

    def merged(self, parameters: Mapping[str, Tensor], site: Site, frozen: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return dict(parameters)
