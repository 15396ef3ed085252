"""Attention inside each text of a pack, registered with transformers' attention interface."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn import functional
from transformers import AttentionInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, eager_mask

from fleetune.engine.dropout import ForwardState, Mask, Threshold, apply_dropout
from fleetune.engine.kernels import attention as kernels
from fleetune.engine.kernels.numbers import array_of
from fleetune.engine.layout import POSITION_BITS
from fleetune.engine.prefix import Prefixes, prefixes_of

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


@dataclass(frozen=True)
class _Call:
    """One passage of a pack through an attention module.

    Attributes:
        pack: The pack.
        scale: Factor of the scores.
        causal: Whether a token sees only those before it.
        window: Reach of a token: itself and this many less one before it (and after it, in encoders).
        softcap: Scores are squashed to ± this by tanh.
        streams: Key and rate of each slot's dropout; empty where nothing is dropped.
        prefixes: What stands before the texts' own keys and values. It is always seen, whatever the window.
    """

    pack: Pack
    scale: float
    causal: bool
    window: int | None
    softcap: float | None
    streams: dict[int, tuple[int, float]]
    prefixes: Prefixes | None

    def unused(self, slot: int) -> int:
        """Returns how many rows of the prefixes belong to longer ones than that of `slot`."""
        return 0 if self.prefixes is None else self.prefixes.longest - self.prefixes.lengths[slot]


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
    """Returns attention `(1, queries, heads, head_width)` within each text, computed in fp32 or better.

    Args:
        module: The attention module; it holds the state of the forward pass.
        query: `(1, heads, queries, head_width)`: every token's, or each text's first token's.
        key: `(1, key_heads, tokens, head_width)`; fewer key heads are each shared by a group of query heads.
        value: As `key`.
        attention_mask: Not used.
        scaling: Factor of the scores; 1 / sqrt(head_width) where absent.
        dropout: Rate on the attention weights.
        sliding_window: Reach of a token.
        softcap: Scores are squashed to ± this by tanh.
        kwargs: What other attention functions take.
    """
    state: ForwardState = module.fleetune_state  # type: ignore[assignment]
    pack = state.pack
    assert pack is not None
    call = _Call(
        pack=pack,
        scale=query.shape[-1] ** -0.5 if scaling is None else scaling,
        causal=bool(getattr(module, "is_causal", False)),
        window=sliding_window,
        softcap=softcap,
        streams=_dropout_streams(state, pack, str(module.fleetune_place), dropout),
        prefixes=prefixes_of(module, pack),
    )
    q, k, v = (x.squeeze(0).transpose(0, 1) for x in (query, key, value))
    if not _has_kernel([q, k, v], call):
        return _plain_attention(q, k, v, call)[None], None
    if call.prefixes is not None:
        k, v = call.prefixes.among_rows(k, v, pack)
    output: Tensor = _Attention.apply(q, k, v, call)
    return output[None], None


def _dropout_streams(state: ForwardState, pack: Pack, place: str, rate: float) -> dict[int, tuple[int, float]]:
    if rate == 0.0 or not state.streams:
        return {}
    slots = [segment.slot for segment in pack.segments]
    return {slot: (state.key(slot, place), state.backbone_rate(slot, rate)) for slot in slots}


def _has_kernel(rows: list[Tensor], call: _Call) -> bool:
    kinds = {x.dtype for x in rows}
    narrow = kinds in ({torch.bfloat16}, {torch.float32})
    simple = call.prefixes is None or (call.window is None and len(call.pack.segments) == 1)
    return narrow and rows[0].device.type == "cpu" and call.softcap is None and simple


class _Attention(torch.autograd.Function):
    """The compiled attention; see `kernels.attend`."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, call: _Call) -> Tensor:
        query, key, value = query.contiguous(), key.contiguous(), value.contiguous()
        settings = _kernel_settings(query, call)
        out = _empty_like(query, call.pack)
        log_sums = np.empty(query.shape[:2], dtype=np.float32)
        kernels.attend(array_of(query), array_of(key), array_of(value), *settings, array_of(out), log_sums)
        ctx.save_for_backward(query, key, value)
        ctx.rest = settings, log_sums, call.pack
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        settings, log_sums, pack = ctx.rest
        inputs = ctx.saved_tensors
        results = tuple(_empty_like(x, pack) for x in inputs)
        arrays = [array_of(x) for x in (gradients[0].contiguous(), *inputs)]
        kernels.attend_backward(*arrays, *settings, log_sums, *(array_of(x) for x in results))
        return *results, None


def _empty_like(x: Tensor, pack: Pack) -> Tensor:
    """Returns memory for a result, zero where it belongs to no text."""
    result = torch.empty_like(x)
    result[pack.real_tokens :] = 0
    return result


def _kernel_settings(query: Tensor, call: _Call) -> tuple[Any, ...]:
    """Returns the kernels' arguments from `query_starts` to `keep`."""
    pack = call.pack
    starts, lengths, numbers = pack.starts.numpy(), pack.lengths.numpy(), pack.numbers.numpy()
    whole = query.shape[0] == pack.tokens
    counts = lengths if whole else np.ones_like(lengths)
    query_starts = starts if whole else np.arange(len(lengths))
    if call.prefixes is not None:
        lengths = lengths + call.prefixes.longest
        starts = lengths.cumsum() - lengths
    keys, dropped, keep = (
        np.zeros(len(lengths), np.uint64),
        np.zeros(len(lengths), np.int32),
        np.ones(len(lengths), np.float32),
    )
    for segment in pack.segments if call.streams else ():
        key, rate = call.streams[segment.slot]
        threshold, own = Threshold.of(rate), slice(segment.texts.start, segment.texts.stop)
        keys[own], dropped[own], keep[own] = key, threshold.dropped, threshold.scale
    window = kernels.NO_WINDOW if call.window is None else call.window
    return (
        query_starts, counts, starts, lengths, numbers, np.float32(call.scale), call.causal, window, keys,
        dropped, keep,
    )  # fmt: skip


def _plain_attention(query: Tensor, key: Tensor, value: Tensor, call: _Call) -> Tensor:
    """Returns attention `(queries, heads, head_width)` bucket by bucket, on any device and in any type."""
    pack = call.pack
    narrowed = query.shape[0] != pack.tokens
    outputs = []
    for bucket in pack.buckets:
        q = in_full(query.index_select(0, bucket.texts)[:, :, None]) if narrowed else _gather(query, bucket)
        k, v = _gather(key, bucket), _gather(value, bucket)
        allowed = _allowed(bucket, call, queries=q.shape[2])
        if (prefixes := call.prefixes) is not None:
            k, v = prefixes.before(k, prefixes.keys, bucket), prefixes.before(v, prefixes.values, bucket)
            allowed = prefixes.allowed(allowed, bucket)
        k, v = _repeat_heads(k, q), _repeat_heads(v, q)
        scores = (q @ k.transpose(2, 3)) * call.scale
        if call.softcap is not None:
            scores = call.softcap * torch.tanh(scores / call.softcap)
        if allowed is not None:
            scores = scores.masked_fill(~allowed, torch.finfo(scores.dtype).min)
        weights = _drop_weights(scores.softmax(dim=-1), bucket, call)
        outputs.append((weights @ v).transpose(1, 2).flatten(0, 1))
    order = torch.cat([bucket.texts for bucket in pack.buckets]).argsort() if narrowed else pack.unbucket
    return torch.cat(outputs).index_select(0, order).to(query.dtype)


def _gather(x: Tensor, bucket: Bucket) -> Tensor:
    """Returns `(texts, heads, width, head_width)` of one bucket, in fp32 or better."""
    gathered = x.index_select(0, bucket.index.flatten()).view(*bucket.index.shape, *x.shape[1:]).transpose(1, 2)
    return in_full(gathered)


def in_full(x: Tensor) -> Tensor:
    """Returns `x` in fp32, or in float64 if it is."""
    return x if x.dtype == torch.float64 else x.float()


def _repeat_heads(x: Tensor, query: Tensor) -> Tensor:
    return x if x.shape[1] == query.shape[1] else x.repeat_interleave(query.shape[1] // x.shape[1], dim=1)


def _allowed(bucket: Bucket, call: _Call, queries: int) -> Tensor | None:
    """Returns which keys a query may see, `(texts or 1, 1, queries or 1, keys)`; None where it may see all."""
    allowed = None if bucket.valid is None else bucket.valid[:, None, None, :]
    if not call.causal and (call.window is None or call.window >= bucket.width):
        return allowed
    steps = torch.arange(bucket.width, device=bucket.index.device)
    distance = steps[:queries, None] - steps[None, :]
    near = distance >= 0 if call.causal else distance.abs() < (call.window or bucket.width)
    if call.causal and call.window is not None:
        near = near & (distance < call.window)
    return near if allowed is None else near & allowed


def _drop_weights(weights: Tensor, bucket: Bucket, call: _Call) -> Tensor:
    if not call.streams:
        return weights
    numbers = call.pack.numbers[bucket.texts].split([texts for _, texts in bucket.shares])
    pieces = weights.split([texts for _, texts in bucket.shares])
    dropped = [
        _drop_piece(piece, own, *call.streams[slot], call.unused(slot))
        for piece, own, (slot, _) in zip(pieces, numbers, bucket.shares, strict=True)
    ]
    return torch.cat(dropped)


def _drop_piece(weights: Tensor, numbers: Tensor, key: int, rate: float, unused: int = 0) -> Tensor:
    """Returns weights with dropout; the first `unused` keys are not this trial's, and its mask begins behind them."""
    if rate == 0.0:
        return weights
    own = apply_dropout(weights[..., unused:], Mask(weight_rows(numbers, *weights.shape[1:3]), key, rate))
    return torch.cat([weights[..., :unused], own], dim=-1) if unused else own


def weight_rows(numbers: Tensor, heads: int, queries: int) -> Tensor:
    """Returns the rows `(texts, heads, queries)` of attention weights in dropout masks."""
    steps = torch.arange(max(heads, queries), device=numbers.device)
    return ((numbers[:, None] * heads + steps[:heads]) << POSITION_BITS)[..., None] | steps[:queries]


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
    prefixes = None if state.pack is None else prefixes_of(module, state.pack)
    if prefixes is not None:
        key, value = (_before_all(x, own[0]) for x, own in ((key, prefixes.keys), (value, prefixes.values)))
        if attention_mask is not None:
            attention_mask = functional.pad(attention_mask, (prefixes.longest, 0))
    q = in_full(query)
    k, v = (in_full(_repeat_heads(x, query)) for x in (key, value))
    scores = (q @ k.transpose(2, 3)) * (q.shape[-1] ** -0.5 if scaling is None else scaling)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if attention_mask is not None:
        scores = scores + attention_mask.to(scores.dtype)
    weights = scores.softmax(dim=-1)
    if state.pack is not None:
        for words in _dropout_streams(state, state.pack, str(module.fleetune_place), dropout).values():
            weights = _drop_piece(weights, state.pack.numbers, *words)
    return (weights @ v).transpose(1, 2).to(query.dtype), None


def _before_all(x: Tensor, learned: Tensor) -> Tensor:
    """Returns `x` `(texts, heads, longest, head_width)`, before each text `learned` `(tokens, heads, head_width)`."""
    own = learned.to(x.dtype).transpose(0, 1)[None].expand(len(x), -1, -1, -1)
    return torch.cat([own, x], dim=2)
