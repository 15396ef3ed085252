"""Puts virtual tokens into the texts of a pack, and shifts positions where a prefix comes before them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn import functional

if TYPE_CHECKING:
    from torch import Tensor

    from fleetune.engine.layout import Pack, Segment


def with_virtual_tokens(pack: Pack, counts: Mapping[int, int], after: int, multiple: int) -> Pack:
    """Returns `pack` with virtual tokens in every text of some trials.

    Their token ids are those of other tokens: a method replaces their embeddings.

    Args:
        pack: The texts alone.
        counts: How many each slot's texts get; slots that are not named get none.
        after: How many of a text's own tokens stand before them.
        multiple: A packed pack is filled up with tokens of no text to a multiple of this.
    """
    own = [counts.get(segment.slot, 0) for segment in pack.segments]
    if not any(own):
        return pack
    if pack.layout == "padded":
        return _padded(pack, own[0], after)
    return _packed(pack, own, after, multiple)


def _padded(pack: Pack, count: int, after: int) -> Pack:
    texts, longest = pack.input_ids.shape
    positions = torch.arange(longest + count, device=pack.input_ids.device)
    virtual, source = _places(positions, count, after)
    lengths = pack.lengths + count
    return replace(
        pack,
        input_ids=pack.input_ids[:, source],
        positions=positions.expand(texts, -1).contiguous(),
        type_ids=None if pack.type_ids is None else pack.type_ids[:, source] * (virtual < 0),
        attention_mask=(positions < lengths[:, None]).long(),
        lengths=lengths,
        virtual=virtual.expand(texts, -1).contiguous(),
        virtual_counts=torch.full_like(lengths, count),
        segments=tuple(_longer(pack, [count], 0)),
    )


def _packed(pack: Pack, own: list[int], after: int, multiple: int) -> Pack:
    each = np.repeat(own, [len(segment.texts) for segment in pack.segments])
    total, counts = pack.real_tokens + int(each.sum()), torch.from_numpy(each).to(pack.lengths)
    lengths = pack.lengths + counts
    starts = lengths.cumsum(0) - lengths
    numbers = torch.arange(len(each), device=lengths.device)
    texts = torch.repeat_interleave(numbers, lengths, output_size=total)
    positions = torch.arange(total, device=lengths.device) - starts[texts]
    virtual, within = _places(positions, counts[texts], after)
    source, rest = pack.starts[texts] + within, -total % multiple

    def fill(values: Tensor, value: int = 0) -> Tensor:
        return functional.pad(values, (0, rest), value=value)[None]

    return replace(
        pack,
        input_ids=fill(pack.input_ids[0, source]),
        positions=fill(positions),
        type_ids=None if pack.type_ids is None else fill(pack.type_ids[0, source] * (virtual < 0)),
        starts=starts,
        lengths=lengths,
        virtual=fill(virtual, -1),
        virtual_counts=counts,
        segments=tuple(_longer(pack, own, total + rest)),
    )


def _places(positions: Tensor, counts: Tensor | int, after: int) -> tuple[Tensor, Tensor]:
    """Returns which virtual token stands at each position, -1 for none, and the position of the text's own token."""
    behind = positions >= after + counts
    is_virtual = (positions >= after) & ~behind
    virtual = torch.where(is_virtual, positions - after, -1)
    return virtual, torch.where(is_virtual, 0, positions - behind * counts)


def _longer(pack: Pack, own: list[int], end: int) -> list[Segment]:
    """Returns the segments with their virtual tokens; in a packed pack the last ends at `end`."""
    segments, start = [], 0
    for segment, count in zip(pack.segments, own, strict=True):
        size = len(segment.tokens) + count * len(segment.texts)
        segments.append(replace(segment, tokens=range(start, start + size)))
        start += size
    if pack.layout == "packed":
        segments[-1] = replace(segments[-1], tokens=range(segments[-1].tokens.start, end))
    return segments


def with_prefixes(pack: Pack, counts: Mapping[int, int]) -> Pack:
    """Returns `pack` with the positions of each slot's texts shifted by the prefix that comes before them."""
    shifts = [counts.get(segment.slot, 0) for segment in pack.segments]
    if len(set(shifts)) == 1:
        return replace(pack, shift=shifts[0])
    sizes = torch.tensor([len(segment.tokens) for segment in pack.segments])
    return replace(pack, shift=torch.tensor(shifts).repeat_interleave(sizes).to(pack.positions.device)[None])
