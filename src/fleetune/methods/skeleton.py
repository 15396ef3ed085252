"""Modules of a backbone's shape without its weights, for what is to be known of a method before a model is loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fleetune.methods.base import BackboneShape, Site

if TYPE_CHECKING:
    from torch import nn


def skeleton(shape: BackboneShape, device: str) -> nn.Module:
    """Returns modules of the backbone's shape at their paths, whose weights take no memory."""
    import torch
    from torch import nn

    root = nn.Module()
    # PEFT takes a model that does not say so for one with gradient checkpointing.
    root.is_gradient_checkpointing = False  # type: ignore[assignment]
    for site in shape.sites:
        module = _empty(site)
        for name, size in site.shapes.items():
            weight = torch.empty(size, device="meta") if device == "meta" else torch.ones(()).expand(size)
            module.register_parameter(name, nn.Parameter(weight, requires_grad=False))
        parent = root
        *path, last = site.name.split(".")
        for name in path:
            if name not in parent._modules:
                parent.add_module(name, nn.Module())
            parent = parent.get_submodule(name)
        parent.add_module(last, module)
    return root


def _empty(site: Site) -> nn.Module:
    import torch
    from torch import nn

    with torch.device("meta"):
        if site.kind == "linear":
            return nn.Linear(site.in_features, site.out_features, bias="bias" in site.shapes)
        if site.kind == "embedding":
            rows, width = site.shapes["weight"]
            return nn.Embedding(rows, width)
        return nn.Module()
