"""Head: a linear probe on the frozen backbone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from fleetune.methods.base import BackboneShape, Method, ParameterSpec, Site, SiteCall
from fleetune.methods.registry import register

if TYPE_CHECKING:
    from torch import Tensor


@register("head", source="Alain & Bengio, 2016, arXiv:1610.01644")
class Head(Method):
    """Trains the classification head, which every method trains, and nothing of the backbone."""

    def sites(self, shape: BackboneShape) -> list[Site]:
        """Returns no site."""
        return []

    def parameters(self, site: Site) -> dict[str, ParameterSpec]:
        """Returns nothing."""
        return {}

    @property
    def is_plain(self) -> bool:
        """True: there is the head alone."""
        return True

    def forward(
        self, x: Tensor, output: Tensor, parameters: Mapping[str, Tensor], site: Site, call: SiteCall
    ) -> Tensor:
        """Returns the frozen output."""
        return output
