"""Attention inside each text of a pack, registered with transformers' attention interface."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from transformers import AttentionInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, eager_mask

from fleetune.engine.dropout import ForwardState, keep_mask

if TYPE_CHECKING:
    from torch import Tensor, nn

    from fleetune.engine.layout import Bucket, Pack

PACKED = "fleetune_packed"
PADDED = "fleetune_padded"


def register_attention() -> None:
    """Makes both layouts known to transformers; a second call changes nothing."""
    AttentionInterface.register(PACKED, packed_attention)
    AttentionInterface.register(PADDED, padded_attention)
    ALL_MASK_ATTENTION_FUNCTIONS.register(PACKED, _no_mask)
    ALL_MASK_ATTENTION_FUNCTIONS.register(PADDED, eager_mask)


def _no_mask(*args: Any, **kwargs: Any) -> None:
    """Returns None: the packed attention reads text borders from the pack."""


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Returns attention `(1, tokens, heads, head_width)` within each text, computed in fp32 or better.

    Args:
        module: The attention module; it holds the state of the forward pass.
        query: `(1, heads, tokens, head_width)`.
        key: `(1, key_heads, tokens, head_width)`; fewer key heads are each shared by a group of query heads.
        value: As `key`.
        attention_mask: Not used.
        scaling: Factor of the scores; 1 / sqrt(head_width) where absent.
        dropout: Rate on the attention weights.
        sliding_window: Reach of a token: itself and this many less one before it (and after it, in encoders).
        softcap: Scores are squashed to ± this by tanh.
        kwargs: What other attention functions take.
    """
    state: ForwardState = module.fleetune_state  # type: ignore[assignment]
    pack = state.pack
    assert pack is not None and pack.unbucket is not None
    streams = _attention_words(state, pack, module, dropout)
    rows = [x[0].transpose(0, 1) for x in (query, key, value)]
    outputs = []
    for bucket in pack.buckets:
        q, k, v = (_gather(x, bucket) for x in rows)
        k, v = _repeat_heads(k, q), _repeat_heads(v, q)
        scores = (q @ k.transpose(2, 3)) * (q.shape[-1] ** -0.5 if scaling is None else scaling)
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        allowed = _allowed(bucket, causal=bool(getattr(module, "is_causal", False)), window=sliding_window)
        if allowed is not None:
            scores = scores.masked_fill(~allowed, torch.finfo(scores.dtype).min)
        weights = scores.softmax(dim=-1)
        if streams:
            weights = weights * _bucket_mask(bucket, weights, streams, dropout)
        outputs.append((weights @ v).transpose(1, 2).flatten(0, 1))
    output = torch.cat(outputs) if len(outputs) > 1 else outputs[0]
    return output.index_select(0, pack.unbucket).to(query.dtype)[None], None


def _gather(x: Tensor, bucket: Bucket) -> Tensor:
    """Returns `(texts, heads, width, head_width)` of one bucket, in fp32 or better."""
    gathered: Tensor = x.index_select(0, bucket.index.flatten()).view(*bucket.index.shape, *x.shape[1:]).transpose(1, 2)
    return gathered if gathered.dtype == torch.float64 else gathered.float()


def _repeat_heads(x: Tensor, query: Tensor) -> Tensor:
    return x if x.shape[1] == query.shape[1] else x.repeat_interleave(query.shape[1] // x.shape[1], dim=1)


def _allowed(bucket: Bucket, causal: bool, window: int | None) -> Tensor | None:
    """Returns which keys a query may see, `(texts or 1, 1, queries or 1, keys)`; None where it may see all."""
    allowed = None if bucket.valid is None else bucket.valid[:, None, None, :]
    if not causal and (window is None or window >= bucket.width):
        return allowed
    steps = torch.arange(bucket.width, device=bucket.index.device)
    distance = steps[:, None] - steps[None, :]
    near = distance >= 0 if causal else distance.abs() < (window or bucket.width)
    if causal and window is not None:
        near = near & (distance < window)
    return near if allowed is None else near & allowed


def _attention_words(state: ForwardState, pack: Pack, module: nn.Module, rate: float) -> dict[int, Any]:
    """Returns each slot's random words for this passage; empty where nothing is dropped."""
    if rate == 0.0 or not state.streams:
        return {}
    place = str(module.fleetune_place)
    slots = [segment.slot for segment in pack.segments]
    return {slot: state.words(slot, place) if state.streams[slot].backbone else None for slot in slots}


def _bucket_mask(bucket: Bucket, weights: Tensor, words: dict[int, Any], rate: float) -> Tensor:
    masks = []
    for slot, texts in bucket.shares:
        shape = (texts, *weights.shape[1:])
        stream = words[slot]
        full = stream is None
        masks.append(torch.ones(shape, dtype=weights.dtype) if full else keep_mask(stream, shape, rate, weights.dtype))
    return (torch.cat(masks) if len(masks) > 1 else masks[0]).to(weights.device)


def padded_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Returns attention `(texts, longest, heads, head_width)` over padded texts; arguments as `packed_attention`.

    `attention_mask` is added to the scores; causality and sliding windows are already in it.
    """
    state: ForwardState = module.fleetune_state  # type: ignore[assignment]
    kind = torch.float64 if query.dtype == torch.float64 else torch.float32
    q, k, v = query.to(kind), _repeat_heads(key, query).to(kind), _repeat_heads(value, query).to(kind)
    scores = (q @ k.transpose(2, 3)) * (q.shape[-1] ** -0.5 if scaling is None else scaling)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if attention_mask is not None:
        scores = scores + attention_mask.to(kind)
    weights = scores.softmax(dim=-1)
    if dropout > 0.0 and state.streams and state.pack is not None:
        slot = state.pack.segments[0].slot
        rate = dropout if state.streams[slot].backbone else 0.0
        weights = state.drop(weights, rate, slot, str(module.fleetune_place))
    return (weights @ v).transpose(1, 2).to(query.dtype), None
