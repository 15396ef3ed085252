"""What is known of post-norm encoder layers, and saved by knowing it.

In the last layer only each text's first token is read, so only it needs a query, a feed-forward and norms; and a
dropout, a sum and a layer norm are one pass over memory. Modules keep their names and parameters: only their
`forward` is another. The parity probe compares the result with the plain model.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fleetune.engine.architecture import Encoder
from fleetune.engine.attention import packed_attention
from fleetune.engine.dropout import FleetDropout, ForwardState, Threshold
from fleetune.engine.kernels import norms
from fleetune.engine.kernels.numbers import array_of

if TYPE_CHECKING:
    from torch import Tensor


def speed_up_encoder(base: nn.Module, encoder: Encoder, state: ForwardState) -> None:
    """Narrows the last layer of `base` to each text's first token, and joins what stands between its products."""
    layers = base.get_submodule(encoder.layers)
    last = layers[-1]  # type: ignore[index]
    attention = last.get_submodule(encoder.attention)
    attention.forward = _narrowed_attention(attention, encoder, state)
    last.forward = _narrowed_layer(last.forward, state)
    for path in encoder.sums:
        for layer in layers.children():
            module = layer.get_submodule(path)
            module.forward = _joined_output(module, state)


def _narrowed_layer(forward: Callable[..., Tensor], state: ForwardState) -> Callable[..., Tensor]:
    def narrowed(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        pack = state.pack
        if pack is None or pack.layout != "packed":
            return forward(hidden_states, *args, **kwargs)
        state.full = hidden_states
        try:
            return forward(hidden_states.index_select(1, pack.starts), *args, **kwargs)
        finally:
            state.full = None

    return narrowed


def _narrowed_attention(attention: Any, encoder: Encoder, state: ForwardState) -> Callable[..., Any]:
    whole = attention.forward

    def narrowed(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        full = state.full
        if full is None:
            return whole(hidden_states, *args, **kwargs)
        inputs = zip(encoder.projections, (hidden_states, full, full), strict=True)
        query, key, value = (_by_head(attention.get_submodule(name)(x), attention) for name, x in inputs)
        dropout = attention.dropout.p if attention.training else 0.0
        output, _ = packed_attention(attention, query, key, value, None, dropout=dropout)
        output = output.flatten(2)
        return (attention.get_submodule(encoder.output)(output) if encoder.output else output), None

    return narrowed


def _by_head(x: Tensor, attention: Any) -> Tensor:
    heads: Tensor = x.view(*x.shape[:-1], -1, attention.attention_head_size).transpose(1, 2)
    return heads


def _joined_output(module: Any, state: ForwardState) -> Callable[[Tensor, Tensor], Tensor]:
    def joined(hidden_states: Tensor, input_tensor: Tensor) -> Tensor:
        # Looked up at each call: a method may have put its own module in the place of either.
        x, norm, dropout = module.dense(hidden_states), module.LayerNorm, module.dropout
        assert isinstance(dropout, FleetDropout)
        if not _has_kernel(x, norm, state):
            return norm(dropout(x) + input_tensor)  # type: ignore[no-any-return]
        return _norm_of_sum(x, input_tensor, norm, dropout, state)

    return joined


def _has_kernel(x: Tensor, norm: Any, state: ForwardState) -> bool:
    one = state.pack is not None and (len(state.pack.segments) == 1 or not state.streams)
    known = isinstance(norm, nn.LayerNorm) and norm.weight.dtype == x.dtype
    return one and known and x.device.type == "cpu" and x.dtype in (torch.bfloat16, torch.float32)


def _norm_of_sum(x: Tensor, residual: Tensor, norm: nn.LayerNorm, dropout: FleetDropout, state: ForwardState) -> Tensor:
    assert state.pack is not None
    slot = state.pack.segments[0].slot
    rate = state.backbone_rate(slot, dropout.p)
    rows = state.pack.rows_of(slot, x) if rate else state.pack.first_rows
    mask = (array_of(rows.reshape(-1)), np.uint64(state.key(slot, dropout.place) if rate else 0), Threshold.of(rate))
    result: Tensor = _NormOfSum.apply(x, residual, norm, mask)
    return result


class _NormOfSum(torch.autograd.Function):
    """norm(dropout(x) + residual) with frozen gain and bias; see `kernels.norms`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, residual: Tensor, norm: nn.LayerNorm, mask: tuple[Any, Any, Threshold]) -> Tensor:
        rows, key, threshold = mask
        settings = rows, key, threshold.dropped, np.float32(threshold.scale), array_of(norm.weight)
        x, residual = x.contiguous(), residual.contiguous()
        out, normal = torch.empty_like(x), torch.empty_like(x)
        inverse = np.empty(x.shape[:-1].numel(), dtype=np.float32)
        norms.normalise(
            _rows(x), _rows(residual), *settings, array_of(norm.bias), np.float32(norm.eps), _rows(out), _rows(normal),
            inverse,
        )  # fmt: skip
        # Saved in this way alone, gradient checkpointing lets go of it.
        ctx.save_for_backward(normal)
        ctx.rest = inverse, settings
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None]:
        (normal,) = ctx.saved_tensors
        inverse, settings = ctx.rest
        to_residual = torch.empty_like(normal)
        to_x = torch.empty_like(normal) if settings[2] else to_residual
        norms.normalise_backward(
            _rows(gradients[0].contiguous()), _rows(normal), inverse, *settings, _rows(to_x), _rows(to_residual)
        )
        return to_x, to_residual, None, None


def _rows(x: Tensor) -> NDArray[Any]:
    """Returns the memory of `x` `(…, width)` as `(rows, width)`."""
    return array_of(x.view(-1, x.shape[-1]))
