"""Which linear modules a method attaches to: by the end of their name, by what they do, by their layer."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from fleetune.errors import MethodError
from fleetune.methods.base import BackboneShape, Role, Site

ALL_LINEAR = "all-linear"
"""Target that stands for every linear module inside the layers."""


def match_targets(shape: BackboneShape, targets: Sequence[str]) -> list[Site]:
    """Returns the linear sites whose path is a target or ends in one, as PEFT matches `target_modules`.

    Raises:
        MethodError: If a target matches nothing; the message lists what exists.
    """
    linear = [site for site in shape.sites if site.kind == "linear"]
    for target in targets:
        if not any(is_target(site, (target,)) for site in linear):
            names = ", ".join(module_names(linear))
            raise MethodError(
                f"target_modules: '{target}' matches no linear module of this {shape.model_type}.\n"
                f"It has: {names}, or {ALL_LINEAR}"
            )
    return [site for site in linear if is_target(site, targets)]


def is_target(site: Site, targets: Sequence[str]) -> bool:
    """Returns whether a linear site's path is one of `targets` or ends in one."""
    everywhere = ALL_LINEAR in targets and site.layer is not None
    named = any(site.name == target or site.name.endswith("." + target) for target in targets)
    return site.kind == "linear" and (everywhere or named)


def check_layers(shape: BackboneShape, layers: Sequence[int] | None) -> None:
    """Raises MethodError unless every one of `layers` is a layer of the backbone; negative ones count from the top."""
    count = shape.sites[0].num_layers if shape.sites else 0
    for layer in layers or ():
        if not -count <= layer < count:
            raise MethodError(
                f"layers: this {shape.model_type} has {count} layers, 0 to {count - 1}; there is no layer {layer}"
            )


def in_layers(site: Site, layers: Sequence[int] | None) -> bool:
    """Returns whether a site lies in one of `layers`, negative ones counted from the top; None are all."""
    if layers is None or site.layer is None:
        return layers is None
    return site.layer in layers or site.layer - site.num_layers in layers


def with_roles(shape: BackboneShape, *roles: Role) -> list[Site]:
    """Returns the linear sites that have one of `roles`, in order."""
    return [site for site in shape.sites if site.kind == "linear" and site.role in roles]


def module_names(sites: Iterable[Site]) -> list[str]:
    """Returns the sites' names below their layer, each once: `attention.self.query`, not one for every layer."""
    names = (re.split(r"\.\d+\.", site.name)[-1] for site in sites)
    return list(dict.fromkeys(names))
