"""Works a trial's deltas into the weights of a plain Hugging Face model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from fleetune.engine.installed import Installation
from fleetune.engine.parameters import SEPARATOR
from fleetune.errors import MethodError
from fleetune.methods.base import SHARED, BackboneShape, Method

if TYPE_CHECKING:
    from torch import Tensor


def merge_into(model: Any, method: Method, shape: BackboneShape, tensors: Mapping[str, Tensor]) -> None:
    """Changes the weights of `model`, in its own type, so that alone it gives the trial's logits.

    Raises:
        MethodError: If the method's deltas cannot be worked into weights.
    """
    if method.installs:
        for name, value in installed_weights(model, method, shape, tensors).items():
            model.get_parameter(name).data.copy_(value.detach())
        return
    with torch.no_grad():
        shared = {name: _fitting(tensors[f"{SHARED}{SEPARATOR}{name}"]) for name in method.shared(shape)}
        for site in method.sites(shape):
            module = model.get_submodule(site.name)
            frozen = {name: parameter.detach() for name, parameter in module.named_parameters(recurse=False)}
            own = {name: _fitting(tensors[f"{site.name}{SEPARATOR}{name}"]) for name in method.parameters(site)}
            merged = method.merged(shared | own, site, {name: _fitting(tensor) for name, tensor in frozen.items()})
            if merged is None:
                raise MethodError(f"{method.kind} cannot be merged into the weights.\nExport without --merge")
            for name, value in merged.items():
                frozen[name].copy_(value)
        for name in shape.head:
            model.get_parameter(name).copy_(tensors[name])


def installed_weights(
    model: Any, method: Method, shape: BackboneShape, tensors: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Returns the weights by name with which the plain `model` gives the logits of a trial whose method installs.

    Gradients flow from them to `tensors`.

    Raises:
        MethodError: If what the method does cannot be worked into weights.
    """
    by_site: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        place, _, parameter = name.rpartition(SEPARATOR)
        by_site.setdefault(place, {})[parameter] = tensor
    weights = {name: tensors[name] for name in shape.head}
    installation = Installation(model, method, shape)
    try:
        installation.put(by_site)
        with installation.running({}):
            for site in method.sites(shape):
                merged = method.merged_module(model.get_submodule(site.name), site)
                if merged is None:
                    title = f"{method.kind} {method.settings.get('type', '')}".strip()
                    raise MethodError(f"{title} cannot be merged into the weights.\nExport without --merge")
                weights |= {f"{site.name}.{name}": value for name, value in merged.items()}
    finally:
        installation.remove()
    return weights


def _fitting(tensor: Tensor) -> Tensor:
    # A product of low-rank factors is rounded once, at the end.
    return tensor.detach().to("cpu", torch.float64)
