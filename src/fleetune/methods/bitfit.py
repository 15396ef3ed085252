"""BitFit: the backbone's biases alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from fleetune.errors import MethodError
from fleetune.methods.base import BackboneShape, Method, ParameterSpec, Site, SiteCall
from fleetune.methods.registry import register

if TYPE_CHECKING:
    from torch import Tensor


@register("bitfit", source="Ben Zaken et al., 2021, arXiv:2106.10199")
class BitFit(Method):
    """Trains every bias of the backbone and nothing else of it (Ben Zaken et al., 2021, section 3)."""

    def sites(self, shape: BackboneShape) -> list[Site]:
        """Returns the linear modules and norms that have a bias."""
        sites = [site for site in shape.sites if "bias" in site.shapes]
        if not sites:
            raise MethodError(
                f"bitfit trains biases, and this {shape.model_type} has none (its linear layers and norms are "
                "without bias).\nTake lora, ia3 or norm instead"
            )
        return sites

    def parameters(self, site: Site) -> dict[str, ParameterSpec]:
        """Returns the bias, starting as it is."""
        return {"bias": ParameterSpec(site.shapes["bias"], initial="frozen", decay=False)}

    @property
    def is_plain(self) -> bool:
        """True: biases are the backbone's own."""
        return True

    def forward(
        self, x: Tensor, output: Tensor, parameters: Mapping[str, Tensor], site: Site, call: SiteCall
    ) -> Tensor:
        """Returns the output with the trial's bias in the place of the frozen one."""
        return output + (parameters["bias"] - call.frozen("bias"))

    def merged(self, parameters: Mapping[str, Tensor], site: Site, frozen: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return dict(parameters)
