"""Attention that reads relative positions, in the padded layout: scores and softmax in fp32, dropout by our streams.

These families do not call transformers' attention interface. Their attention modules keep names and parameters; only
`forward` is another, and only while the padded layout is on. With Hugging Face's `eager` attention, as the parity
probe uses it, the modules compute as they came.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from fleetune.engine.architecture import Architecture, Relative
from fleetune.engine.attention import PADDED, in_full, padded_attention
from fleetune.engine.dropout import ForwardState
from fleetune.runtime import device

if TYPE_CHECKING:
    from torch import Tensor

Forward = Callable[..., Any]


def take_over_attention(base: nn.Module, kind: Relative, state: ForwardState) -> None:
    """Makes the attention modules of `base` compute by `padded_attention` while the padded layout is on."""
    make = _biased if kind == "bias" else _disentangled
    own = "MPNetSelfAttention" if kind == "bias" else "DisentangledSelfAttention"
    for module in base.modules():
        if type(module).__name__ == own:
            module.forward = _switched(module.forward, make(module, state), base)
    if kind == "disentangled" and base.encoder.relative_attention:  # type: ignore[union-attr]
        _read_relative_embeddings_by_call(base.encoder, state)


def set_attention(model: nn.Module, architecture: Architecture, implementation: str) -> None:
    """Makes the attention of `model` that of `implementation`: `eager`, or a layout's name in transformers."""
    if architecture.relative is None:
        hub_model: Any = model
        hub_model.set_attn_implementation(implementation)
    else:
        object.__setattr__(model.get_submodule(architecture.base), "fleetune_attention", implementation)


def _switched(plain: Forward, ours: Forward, base: Any) -> Forward:
    def forward(*args: Any, **kwargs: Any) -> Any:
        return (ours if base.fleetune_attention == PADDED else plain)(*args, **kwargs)

    return forward


def _biased(attention: Any, _: ForwardState) -> Forward:
    """Returns MPNet's attention (Song et al., 2020): a learned bias for each distance, shared by the layers."""

    def forward(hidden_states: Tensor, attention_mask: Tensor | None, position_bias: Tensor, **_: Any) -> tuple[Tensor]:
        width = attention.attention_head_size
        query, key, value = (_by_head(attention.get_submodule(name)(hidden_states), width) for name in "qkv")
        bias = in_full(position_bias) if attention_mask is None else in_full(position_bias) + in_full(attention_mask)
        output = padded_attention(attention, query, key, value, bias, dropout=attention.dropout.p)[0]
        return (attention.o(output.flatten(2)),)

    return forward


def _disentangled(attention: Any, state: ForwardState) -> Forward:
    """Returns DeBERTa's attention (He et al., 2020, arXiv:2006.03654, equations 4 and 5)."""

    def forward(
        hidden_states: Tensor,
        attention_mask: Tensor,
        output_attentions: bool = False,
        query_states: Tensor | None = None,
        relative_pos: Tensor | None = None,
        rel_embeddings: Tensor | None = None,
    ) -> tuple[Tensor, None]:
        names = ("query_proj", "key_proj", "value_proj")
        width = attention.attention_head_size
        query, key, value = (_by_head(attention.get_submodule(name)(hidden_states), width) for name in names)
        kinds = [kind for kind in ("c2p", "p2c") if kind in attention.pos_att_type]
        scale = (width * (1 + len(kinds))) ** -0.5
        full = in_full(query)
        bias = full.new_zeros(attention_mask.shape)
        bias.masked_fill_(~attention_mask.bool(), torch.finfo(full.dtype).min)
        if attention.relative_attention:
            assert relative_pos is not None
            assert rel_embeddings is not None
            with _apart(state):
                by_place = _project_positions(attention, rel_embeddings, kinds)
            relative = _relative_scores(full, in_full(key), relative_pos, by_place)
            bias = bias + relative * scale
        output = padded_attention(attention, query, key, value, bias, scaling=scale, dropout=attention.dropout.p)[0]
        return output.flatten(2), None

    return forward


@contextmanager
def _apart(state: ForwardState) -> Iterator[None]:
    before, state.apart = state.apart, True
    try:
        yield
    finally:
        state.apart = before


def _project_positions(attention: Any, embeddings: Tensor, kinds: list[str]) -> dict[str, Tensor]:
    """Returns keys (`c2p`) and queries (`p2c`) of relative positions, `(1, heads, 2 * span, head_width)`."""
    shared = attention.share_att_key
    names = {"c2p": "key_proj" if shared else "pos_key_proj", "p2c": "query_proj" if shared else "pos_query_proj"}
    places = attention.pos_dropout(embeddings)[None, : 2 * attention.pos_ebd_size]
    width = attention.attention_head_size
    return {kind: in_full(_by_head(attention.get_submodule(names[kind])(places), width)) for kind in kinds}


def _relative_scores(query: Tensor, key: Tensor, distance: Tensor, by_place: dict[str, Tensor]) -> Tensor:
    """Returns content-to-position and position-to-content scores `(texts, heads, longest, longest)`, unscaled.

    Args:
        query: `(texts, heads, longest, head_width)`.
        key: As `query`.
        distance: `(1, longest, longest)`, query's position less key's, in buckets.
        by_place: As `_project_positions` gives it.
    """
    scores = query.new_zeros(())
    if "c2p" in by_place:
        last = by_place["c2p"].shape[2] - 1
        place = (distance + (last + 1) // 2).clamp(0, last)
        at_all = query @ by_place["c2p"].transpose(2, 3)
        scores = scores + at_all.gather(-1, place.expand(*query.shape[:2], -1, -1))
    if "p2c" in by_place:
        last = by_place["p2c"].shape[2] - 1
        place = ((last + 1) // 2 - distance).clamp(0, last)
        at_all = key @ by_place["p2c"].transpose(2, 3)
        scores = scores + at_all.gather(-1, place.expand(*query.shape[:2], -1, -1)).transpose(2, 3)
    return scores


def _read_relative_embeddings_by_call(encoder: Any, state: ForwardState) -> None:
    """Makes `encoder` call its embedding of relative positions, where it would read the weight past a delta."""
    count = encoder.rel_embeddings.num_embeddings

    def get_rel_embedding() -> Tensor:
        # Looked up at each call: a method may have put its own module in the place of either.
        with _apart(state):
            embeddings: Tensor = encoder.rel_embeddings(torch.arange(count, device=device()))
            return encoder.LayerNorm(embeddings) if "layer_norm" in encoder.norm_rel_ebd else embeddings

    encoder.get_rel_embedding = get_rel_embedding


def _by_head(x: Tensor, width: int) -> Tensor:
    return x.view(*x.shape[:-1], -1, width).transpose(1, 2)
