"""What the bottleneck adapters have in common; they differ in where they stand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from fleetune.errors import MethodError
from fleetune.methods.base import BackboneShape, Method, MethodConfig, ParameterSpec, Role, Site, SiteCall
from fleetune.methods.targets import check_layers, in_layers, with_roles

if TYPE_CHECKING:
    from torch import Tensor


class Bottleneck(Method):
    """Two small layers with a residual connection behind a sublayer: h + up(activation(down(h))).

    `up` starts at zero, so that a fresh adapter changes nothing. The adapter acts on the projection's output, before
    the backbone's own dropout, residual sum and norm.
    """

    class Config(MethodConfig):
        """A bottleneck adapter's settings."""

        bottleneck_size: int = Field(default=64, ge=1)
        """Width between the two layers."""
        activation: Literal["gelu", "relu", "silu", "tanh"] = "gelu"
        """Function between the two layers."""
        dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
        """Dropout on what the adapter adds."""
        layers: tuple[int, ...] | None = None
        """Layers that get adapters; negative ones count from the top. All where absent."""

    config: Config
    roles: ClassVar[tuple[Role, ...]]
    """Roles of the projections that an adapter follows."""

    def sites(self, shape: BackboneShape) -> list[Site]:
        """Returns the last projection of each sublayer that an adapter follows."""
        sites = with_roles(shape, *self.roles)
        if not sites:
            raise MethodError(
                f"{self.kind} finds no {' or '.join(self.roles)} module in this {shape.model_type}.\n"
                'Take lora with target_modules = ["all-linear"] instead'
            )
        check_layers(shape, self.config.layers)
        return [site for site in sites if in_layers(site, self.config.layers)]

    def parameters(self, site: Site) -> dict[str, ParameterSpec]:
        """Returns both layers: 2md + d + m values for width d and bottleneck m (Houlsby et al., 2019, section 2.1)."""
        width, size = site.out_features, self.config.bottleneck_size
        return {
            "down_weight": ParameterSpec((size, width), initial="kaiming_uniform"),
            "down_bias": ParameterSpec((size,), initial="zeros", decay=False),
            "up_weight": ParameterSpec((width, size), initial="zeros"),
            "up_bias": ParameterSpec((width,), initial="zeros", decay=False),
        }

    def forward(
        self, x: Tensor, output: Tensor, parameters: Mapping[str, Tensor], site: Site, call: SiteCall
    ) -> Tensor:
        """Returns h + dropout(up(activation(down(h)))) for the frozen output h."""
        from torch.nn import functional

        inner = functional.linear(output, parameters["down_weight"], parameters["down_bias"])
        inner = getattr(functional, self.config.activation)(inner)
        added = functional.linear(inner, parameters["up_weight"], parameters["up_bias"])
        return output + call.dropout(added, self.config.dropout)
