"""The plain Hugging Face model with a method's deltas, put together apart from the engine; gradients pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch.nn import functional
from transformers import AttentionInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, eager_mask

from fleetune.bundle.merging import installed_weights
from fleetune.methods.base import BackboneShape, Method

Tensors = dict[str, torch.Tensor]
NOT_MERGEABLE = {"houlsby", "pfeiffer", "prefix", "prompt"}
"""Methods whose deltas are no change of weights."""


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
        if self.method.kind == "prompt" and self._is_decoder and len(inputs["input_ids"]) > 1:
            # From embeddings alone transformers cannot tell which token is a text's last.
            lengths = inputs["attention_mask"].sum(dim=1).tolist()
            rows = [
                {name: x[row : row + 1, :length] for name, x in inputs.items()} for row, length in enumerate(lengths)
            ]
            return SimpleNamespace(logits=torch.cat([self(**row).logits for row in rows]))
        weights = {name: tensor for name, tensor in self.tensors.items() if "::" not in name}
        with ExitStack() as stack:
            match self.method.kind:
                case "houlsby" | "pfeiffer":
                    self._put_adapters(stack)
                case "prompt":
                    inputs = self._with_prompt(**inputs)
                case "prefix":
                    inputs = self._with_prefix(stack, **inputs)
                case "peft":
                    weights = installed_weights(self.model, self.method, self.shape, self.tensors)
                case _:
                    weights |= self._merged()
            return torch.func.functional_call(self.model, weights, kwargs=inputs)

    def at(self, site: str) -> Tensors:
        """Returns the tensors at one site, by their name there."""
        own = (name.partition("::") for name in self.tensors)
        return {name: self.tensors[f"{site}::{name}"] for place, _, name in own if place == site and name}

    def _merged(self) -> Tensors:
        merged: Tensors = {}
        for site in self.method.sites(self.shape):
            frozen = {name: self.model.get_parameter(f"{site.name}.{name}").detach() for name in site.shapes}
            changed = self.method.merged(self.at("") | self.at(site.name), site, frozen)
            assert changed is not None
            merged |= {f"{site.name}.{name}": tensor for name, tensor in changed.items()}
        return merged

    @property
    def _is_decoder(self) -> bool:
        return bool(hasattr(self.model, "score"))

    def _with_prompt(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Tensors:
        """Returns embeddings, and the mask, with the prompt in front; in encoders behind the first token."""
        (prompt,) = (tensor for name, tensor in self.tensors.items() if name.endswith("::prompt_embeddings"))
        model: Any = self.model
        words, place = model.get_input_embeddings()(input_ids), 0 if self._is_decoder else 1
        prompts = prompt.expand(len(words), -1, -1)
        seen = attention_mask.new_ones(prompts.shape[:2])
        return {
            "inputs_embeds": torch.cat([words[:, :place], prompts, words[:, place:]], dim=1),
            "attention_mask": torch.cat([seen, attention_mask], dim=1),
        }

    def _with_prefix(self, stack: ExitStack, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Tensors:
        """Makes every attention see the prefix, and returns the inputs with the positions behind it."""
        prefix = self.tensors["::prompt_embeddings"]
        first = {"roberta": int(self.model.config.pad_token_id) + 1}.get(self.model.config.model_type, 0)
        attend = partial(_attention_with_prefix, prefix, iter(range(1000)))
        AttentionInterface.register("reference_prefix", attend)
        ALL_MASK_ATTENTION_FUNCTIONS.register("reference_prefix", eager_mask)
        model: Any = self.model
        stack.callback(model.set_attn_implementation, model.config._attn_implementation)
        model.set_attn_implementation("reference_prefix")
        positions = torch.arange(input_ids.shape[1]).expand_as(input_ids) + len(prefix) + first
        return {"input_ids": input_ids, "attention_mask": attention_mask, "position_ids": positions}

    def _put_adapters(self, stack: ExitStack) -> None:
        functions: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
            "gelu": functional.gelu,
            "relu": functional.relu,
        }
        activation = functions[self.method.settings["activation"]]
        places = [name for name, _ in self.model.named_modules() if self._has_adapter(name)]
        assert len(places) == len(self.method.sites(self.shape))
        for place in places:

            def adapted(_: Any, __: Any, h: torch.Tensor, place: str = place) -> torch.Tensor:
                own = self.at(place)
                inner = activation(h @ own["down_weight"].T + own["down_bias"])
                return h + inner @ own["up_weight"].T + own["up_bias"]

            stack.callback(self.model.get_submodule(place).register_forward_hook(adapted).remove)

    def _has_adapter(self, name: str) -> bool:
        attention = name.endswith(("attention.output.dense", "attention.out_lin", "attn.Wo", "attn.o_proj"))
        feed_forward = name.endswith(("output.dense", "ffn.lin2", "mlp.Wo", "mlp.down_proj")) and not attention
        return feed_forward or (attention and self.method.kind == "houlsby")


def _attention_with_prefix(
    prefix: torch.Tensor,
    calls: Iterator[int],
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Returns eager attention over a layer's prefix and the text; layers are told apart by the order of their calls."""
    count, layer = len(prefix), next(calls)
    texts, heads, width = key.shape[0], key.shape[1], key.shape[3]
    own = prefix.view(count, -1, 2, heads, width)[:, layer].permute(1, 2, 0, 3)
    keys, values = (
        torch.cat([part.expand(texts, -1, -1, -1), x], dim=2) for part, x in zip(own, (key, value), strict=True)
    )
    group = query.shape[1] // heads
    scores = query @ keys.repeat_interleave(group, dim=1).transpose(2, 3) * (scaling or width**-0.5)
    if attention_mask is not None:
        scores[..., count:] += attention_mask
    return (scores.softmax(dim=-1) @ values.repeat_interleave(group, dim=1)).transpose(1, 2), None
