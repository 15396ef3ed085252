"""The plain Hugging Face model with a method's deltas, put together apart from the engine; gradients pass."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch
from torch.nn import functional

from fleetune.methods.base import BackboneShape, Method

Tensors = dict[str, torch.Tensor]


class Reference(torch.nn.Module):
    """A classification model whose trained tensors are `tensors`, named as in a trial's state.

    Args:
        model: The plain Hugging Face model.
        method: What the tensors belong to.
        shape: The backbone's shape.
        tensors: Deltas as `site::name`, and the head by its own names.
    """

    def __init__(self, model: Any, method: Method, shape: BackboneShape, tensors: Tensors) -> None:
        super().__init__()
        self.model, self.method, self.shape, self.tensors = model.requires_grad_(False), method, shape, tensors

    def forward(self, **inputs: torch.Tensor) -> Any:
        """Returns what the model returns for a padded batch."""
        weights = {name: tensor for name, tensor in self.tensors.items() if "::" not in name}
        with ExitStack() as stack:
            if self.method.kind in ("houlsby", "pfeiffer"):
                self._put_adapters(stack)
            else:
                weights |= self._merged()
            return torch.func.functional_call(self.model, weights, kwargs=inputs)

    def at(self, site: str) -> Tensors:
        """Returns the tensors at one site, by their name there."""
        own = (name.partition("::") for name in self.tensors)
        return {name: self.tensors[f"{site}::{name}"] for place, _, name in own if place == site and name}

    def _merged(self) -> Tensors:
        merged = {}
        for site in self.method.sites(self.shape):
            frozen = {name: self.model.get_parameter(f"{site.name}.{name}").detach() for name in site.shapes}
            changed = self.method.merged(self.at(site.name), site, frozen)
            assert changed is not None
            merged |= {f"{site.name}.{name}": tensor for name, tensor in changed.items()}
        return merged

    def _put_adapters(self, stack: ExitStack) -> None:
        activation = {"gelu": functional.gelu, "relu": functional.relu}[self.method.settings["activation"]]
        places = [name for name, _ in self.model.named_modules() if self._has_adapter(name)]
        assert len(places) == len(self.method.sites(self.shape))
        for place in places:

            def adapted(_: Any, __: Any, h: torch.Tensor, own: Tensors = self.at(place)) -> torch.Tensor:
                inner = activation(h @ own["down_weight"].T + own["down_bias"])
                return h + inner @ own["up_weight"].T + own["up_bias"]

            stack.callback(self.model.get_submodule(place).register_forward_hook(adapted).remove)

    def _has_adapter(self, name: str) -> bool:
        attention = name.endswith(("attention.output.dense", "attention.out_lin", "attn.Wo", "attn.o_proj"))
        feed_forward = name.endswith(("output.dense", "ffn.lin2", "mlp.Wo", "mlp.down_proj")) and not attention
        return feed_forward or (attention and self.method.kind == "houlsby")
