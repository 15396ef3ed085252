"""Plain modules that compute as PEFT's do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fleetune.methods.base import Site

if TYPE_CHECKING:
    from torch import Tensor, nn


def as_linear(module: nn.Module, site: Site) -> dict[str, Tensor] | None:
    """Returns weight and bias of the linear layer that computes as `module`; None if it is no affine map of a token.

    Gradients flow from them to what `module` is made of.
    """
    import torch

    like = next(module.parameters())
    units = torch.eye(site.in_features, dtype=like.dtype, device=like.device)
    bias = module(torch.zeros_like(units[:1])[None])[0, 0]
    weight = (module(units[None])[0] - bias).T
    with torch.no_grad():
        x = torch.randn(4, site.in_features, generator=torch.Generator().manual_seed(0)).to(like)
        expected = module(x[None])[0]
        apart = (x @ weight.T + bias - expected).abs().max() / expected.abs().max()
    has_bias = "bias" in site.shapes
    if not apart < 1e-4 or (not has_bias and bool(bias.any())):
        return None
    return {"weight": weight} | ({"bias": bias} if has_bias else {})


def merged_by_itself(module: Any) -> dict[str, Tensor] | None:
    """Returns the parameters of the module below PEFT's `module` once that has merged itself; None if it cannot."""
    from torch import nn

    base = module.get_base_layer()
    for name, own in base.named_parameters(recurse=False):
        base._parameters[name] = nn.Parameter(own.detach().clone(), requires_grad=False)
    try:
        module.merge()
    except (AttributeError, NotImplementedError, ValueError):
        return None
    return {name: own.detach() for name, own in module.get_base_layer().named_parameters(recurse=False)}
