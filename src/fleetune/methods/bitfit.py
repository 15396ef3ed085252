"""BitFit: the backbone's biases alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from fleetune.errors import MethodError
from fleetune.methods.base import BackboneShape, Method, MethodConfig, ParameterSpec, Role, Site, SiteCall
from fleetune.methods.registry import register

if TYPE_CHECKING:
    from torch import Tensor


@register("bitfit", source="Ben Zaken et al., 2021, arXiv:2106.10199")
class BitFit(Method):
    """Trains the backbone's biases, all or some, and nothing else of it (Ben Zaken et al., 2021, section 3)."""

    class Config(MethodConfig):
        """BitFit's settings."""

        biases: tuple[Role | Literal["norm"], ...] | None = None
        """Biases of the modules with these roles; all where absent. The paper's small subset, the query's and the first
        feed-forward module's (its b_q and b_m2), is ["query", "feed_forward_in"]."""

    config: Config

    def sites(self, shape: BackboneShape) -> list[Site]:
        """Returns the linear modules and norms whose bias is trained."""
        with_bias = [site for site in shape.sites if "bias" in site.shapes]
        if not with_bias:
            raise MethodError(
                f"bitfit trains biases, and this {shape.model_type} has none (its linear layers and norms are "
                "without bias).\nTake lora, ia3 or norm instead"
            )
        for role in self.config.biases or ():
            if not any(_role(site) == role for site in with_bias):
                known = ", ".join(dict.fromkeys(_role(site) for site in with_bias))
                raise MethodError(f"biases: no bias of this {shape.model_type} has the role '{role}'; it has: {known}")
        return [site for site in with_bias if self.config.biases is None or _role(site) in self.config.biases]

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
        return shifted(output, parameters["bias"] - call.frozen("bias"), site)

    def merged(self, parameters: Mapping[str, Tensor], site: Site, frozen: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return dict(parameters)


def _role(site: Site) -> str:
    return "norm" if site.kind == "norm" else site.role


def shifted(output: Tensor, shift: Tensor, site: Site) -> Tensor:
    """Returns a site's output with `shift` `(out_features,)` added; a convolution's channels come first."""
    return output + (shift[:, None] if site.kind == "convolution" else shift)
