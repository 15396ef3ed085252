"""IA3: learned vectors that rescale activations."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from fleetune.errors import MethodError
from fleetune.methods.base import BackboneShape, Method, MethodConfig, ParameterSpec, Site, SiteCall
from fleetune.methods.registry import register
from fleetune.methods.targets import is_target, match_targets, with_roles

if TYPE_CHECKING:
    from torch import Tensor


@register("ia3", source="Liu et al., 2022, arXiv:2205.05638")
class IA3(Method):
    """Rescales keys, values and the feed-forward's inner activations by vectors (Liu et al., 2022, section 3.3).

    A module that is one of `feedforward_modules` has its input rescaled, any other its output.
    """

    class Config(MethodConfig):
        """IA3's settings."""

        target_modules: tuple[str, ...] | None = None
        """Linear modules by the end of their name; key, value and the feed-forward's last where absent."""
        feedforward_modules: tuple[str, ...] | None = None
        """Which of them have their input rescaled; the feed-forward's last where absent."""

    config: Config
    changes_input = True

    def sites(self, shape: BackboneShape) -> list[Site]:
        """Returns the targets; key, value and the feed-forward's last linear module by default."""
        if self.config.target_modules is not None:
            sites = match_targets(shape, self.config.target_modules)
        else:
            sites = with_roles(shape, "key", "value", "query_key_value", "feed_forward_out")
        if not sites:
            raise MethodError(f"ia3 has no targets in this {shape.model_type}; name them: target_modules = […]")
        for name in self.config.feedforward_modules or ():
            if not any(is_target(site, (name,)) for site in sites):
                raise MethodError(f"feedforward_modules: '{name}' is none of the targets; add it to target_modules")
        return sites

    def rescales_input(self, site: Site) -> bool:
        """Returns whether the vector acts on the site's input; else it acts on its output."""
        if self.config.feedforward_modules is None:
            return site.role == "feed_forward_out"
        return is_target(site, self.config.feedforward_modules)

    def parameters(self, site: Site) -> dict[str, ParameterSpec]:
        """Returns one vector of ones."""
        width = site.in_features if self.rescales_input(site) else site.out_features
        return {"ia3_l": ParameterSpec((width,), initial="ones")}

    def transform_input(self, x: Tensor, parameters: Mapping[str, Tensor], site: Site) -> Tensor:
        """Returns l ⊙ x for a feed-forward module."""
        return x * parameters["ia3_l"] if self.rescales_input(site) else x

    def forward(
        self, x: Tensor, output: Tensor, parameters: Mapping[str, Tensor], site: Site, call: SiteCall
    ) -> Tensor:
        """Returns l ⊙ (W·x + b) for any other module."""
        return output if self.rescales_input(site) else output * parameters["ia3_l"]

    def merged(self, parameters: Mapping[str, Tensor], site: Site, frozen: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Returns W with its columns rescaled for a feed-forward module; for any other its rows, and the bias."""
        vector = parameters["ia3_l"]
        if self.rescales_input(site):
            return {"weight": frozen["weight"] * vector}
        rescaled = {"weight": frozen["weight"] * vector[:, None]}
        return rescaled | ({"bias": frozen["bias"] * vector} if "bias" in frozen else {})

    def to_peft(self, sites: Iterable[Site]) -> dict[str, Any]:
        """Returns the fields of PEFT's `IA3Config`."""
        chosen = list(sites)
        return {
            "peft_type": "IA3",
            "target_modules": [site.name for site in chosen],
            "feedforward_modules": [site.name for site in chosen if self.rescales_input(site)],
        }

    def peft_shape(self, parameter: str, site: Site) -> tuple[int, ...]:
        """Returns `(1, in)` for a feed-forward module, `(out, 1)` for any other."""
        return (1, site.in_features) if self.rescales_input(site) else (site.out_features, 1)
