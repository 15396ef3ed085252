"""How the texts of a batch lie in memory: end to end without padding, or side by side with padding.

In a pack a text is one sequence of tokens. A long text that is read in windows is several: each window is a text like
any other, with its own positions, number and dropout masks, until `Segment.windows` pools their logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from fleetune.engine.windows import Windows
from fleetune.runtime import device

if TYPE_CHECKING:
    from torch import Tensor

    from fleetune.data.tokens import Tokens

Layout = Literal["packed", "padded"]
POSITION_BITS = 20
"""A dropout mask's row for a token is `text << 20 | position`, text being its number in the trial's batch. So the mask
depends neither on the layout nor on which texts of the batch share the pack."""


@dataclass(frozen=True)
class Segment:
    """One trial's share of a pack: a run of texts and the run of their tokens.

    Attributes:
        slot: The trial's.
        texts: Its texts in the pack.
        tokens: Their tokens.
        windows: Which of them are windows of one text; None where each stands for itself.
    """

    slot: int
    texts: range
    tokens: range
    windows: Windows | None = None


@dataclass(frozen=True)
class Bucket:
    """Texts of about one length, as attention sees them.

    Attributes:
        width: Number of positions; a function of a text's own length, so that neighbours do not change it.
        texts: `(texts,)` which texts of the pack they are.
        index: `(texts, width)` token positions in the pack; past a text's end its last token again, so that no
            value of another text is ever read.
        valid: `(texts, width)` whether a position is within the text; None if all are.
        shares: `(slot, texts)` of each trial, in the order of the rows.
    """

    width: int
    texts: Tensor
    index: Tensor
    valid: Tensor | None
    shares: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Pack:
    """The input of one forward pass.

    Attributes:
        layout: `packed` or `padded`.
        input_ids: `(1, tokens)` if packed, `(texts, longest)` if padded.
        positions: As `input_ids`: the position of each token in its text, from 0.
        type_ids: As `input_ids`, where the backbone knows them.
        attention_mask: `(texts, longest)` if padded, else None.
        starts: `(texts,)` first token of each text in the pack (packed) or 0 (padded).
        lengths: `(texts,)` tokens of each text.
        numbers: `(texts,)` the number of each text in its trial's batch.
        segments: Each trial's share, in order.
        virtual: As `input_ids`: which virtual token stands at a place, -1 for a text's own; None if there are none.
        virtual_counts: `(texts,)` how many virtual tokens each text has among its tokens; None if there are none.
        shift: What is added to `positions` where a prefix takes those before a text: one number, or one a token.
    """

    layout: Layout
    input_ids: Tensor
    positions: Tensor
    type_ids: Tensor | None
    attention_mask: Tensor | None
    starts: Tensor
    lengths: Tensor
    numbers: Tensor
    segments: tuple[Segment, ...]
    virtual: Tensor | None = None
    virtual_counts: Tensor | None = None
    shift: Tensor | int = 0

    @property
    def tokens(self) -> int:
        """Number of tokens; a packed pack may end in a few that belong to no text, counted to the last segment."""
        return self.segments[-1].tokens.stop

    @cached_property
    def real_tokens(self) -> int:
        """Number of the texts' own tokens."""
        return int(self.lengths.sum())

    @cached_property
    def rows(self) -> Tensor:
        """As `positions`: each token's row in dropout masks."""
        if self.layout == "padded":
            return self.numbers[:, None] << POSITION_BITS | self.positions
        rows = torch.repeat_interleave(self.numbers, self.lengths) << POSITION_BITS
        return (functional.pad(rows, (0, self.tokens - self.real_tokens)) | self.positions[0])[None]

    @cached_property
    def first_rows(self) -> Tensor:
        """`(texts,)` the row in dropout masks of each text's first token, and of its pooled vector."""
        return self.numbers << POSITION_BITS

    def sizes_of(self, rows: int) -> list[int]:
        """Returns each segment's share of `rows` rows: its tokens, or its texts where one of each is left."""
        if rows == self.tokens:
            return [len(segment.tokens) for segment in self.segments]
        return [len(segment.texts) for segment in self.segments]

    def segment_of(self, slot: int) -> Segment:
        """Returns the share of the trial in `slot`."""
        return next(segment for segment in self.segments if segment.slot == slot)

    def virtual_of(self, slot: int) -> Tensor:
        """Returns one trial's part of `virtual`."""
        assert self.virtual is not None
        if self.layout == "padded":
            return self.virtual
        own = self.segment_of(slot).tokens
        return self.virtual[:, own.start : own.stop]

    def rows_of(self, slot: int, x: Tensor) -> Tensor:
        """Returns the rows in dropout masks of one trial's `x`: its tokens' or its texts', whatever `x` holds."""
        segment = self.segment_of(slot)
        if x.dim() == 2:
            return self.first_rows[segment.texts.start : segment.texts.stop]
        if self.layout == "padded":
            return self.rows
        if x.shape[1] == len(segment.tokens):
            return self.rows[:, segment.tokens.start : segment.tokens.stop]
        return self.first_rows[None, segment.texts.start : segment.texts.stop]

    @cached_property
    def buckets(self) -> tuple[Bucket, ...]:
        """Texts grouped by length, for attention in plain torch."""
        return _buckets(self.starts.cpu().numpy(), self.lengths.cpu().numpy(), self.segments)

    @cached_property
    def unbucket(self) -> Tensor:
        """`(tokens,)` where each token of the pack stands in the buckets laid end to end."""
        places = torch.zeros(self.tokens, dtype=torch.int64, device=self.lengths.device)
        offset = 0
        for bucket in self.buckets:
            here = torch.arange(bucket.index.numel(), device=places.device).view(bucket.index.shape) + offset
            # Past a text's end its last token stands again; the first of them must win.
            real = torch.arange(bucket.width, device=places.device) < self.lengths[bucket.texts, None]
            places[bucket.index[real]] = here[real]
            offset += bucket.index.numel()
        return places


def pack_texts(
    tokens: Tokens,
    batches: Sequence[tuple[int, NDArray[np.int64]]],
    layout: Layout,
    firsts: Sequence[int] | None = None,
    multiple: int = 1,
) -> Pack:
    """Returns the pack of each trial's batch, given as (slot, indices into `tokens`), in that order.

    Args:
        tokens: The texts.
        batches: Each trial's slot and texts; a text that is read in windows comes with all of them.
        layout: The layout.
        firsts: The number of each entry's first sequence in the trial's whole batch, where an entry is a part of one.
        multiple: A packed pack is filled up with tokens of no text to a multiple of this.

    Raises:
        ValueError: If a padded pack is asked for several trials; they take turns there.
    """
    sequences = [(slot, tokens.sequences_of(texts)) for slot, texts in batches]
    pack = pack_sequences(tokens, sequences, layout, firsts, multiple)
    if tokens.text_offsets is None:
        return pack
    counts = [tokens.sequence_counts[texts] for _, texts in batches]
    segments = tuple(
        replace(segment, windows=Windows(_tensor(own), tokens.pool)) if own.max(initial=1) > 1 else segment
        for segment, own in zip(pack.segments, counts, strict=True)
    )
    return replace(pack, segments=segments)


def pack_sequences(
    tokens: Tokens,
    batches: Sequence[tuple[int, NDArray[np.int64]]],
    layout: Layout,
    firsts: Sequence[int] | None = None,
    multiple: int = 1,
) -> Pack:
    """Returns the pack of sequences that each stand for themselves; arguments as for `pack_texts`."""
    texts = np.concatenate([indices for _, indices in batches])
    lengths = tokens.sequence_lengths[texts].astype(np.int64)
    segments = _segments(batches, lengths)
    counts = [len(indices) for _, indices in batches]
    numbers = np.concatenate(
        [np.arange(n) + first for n, first in zip(counts, firsts or [0] * len(counts), strict=True)]
    )
    if layout == "padded":
        if len(batches) != 1:
            raise ValueError(f"a padded pack holds one trial, got {len(batches)}")
        return _padded(tokens, texts, lengths, numbers, segments)
    return _packed(tokens, texts, lengths, numbers, segments, multiple)


def _segments(batches: Sequence[tuple[int, NDArray[np.int64]]], lengths: NDArray[np.int64]) -> tuple[Segment, ...]:
    segments, text, token = [], 0, 0
    for slot, indices in batches:
        count = len(indices)
        size = int(lengths[text : text + count].sum())
        segments.append(Segment(slot, range(text, text + count), range(token, token + size)))
        text, token = text + count, token + size
    return tuple(segments)


def _packed(
    tokens: Tokens,
    texts: NDArray[np.int64],
    lengths: NDArray[np.int64],
    numbers: NDArray[np.int64],
    segments: tuple[Segment, ...],
    multiple: int,
) -> Pack:
    ends = np.cumsum(lengths)
    starts = ends - lengths
    positions = np.arange(ends[-1]) - np.repeat(starts, lengths)
    source = np.repeat(tokens.offsets[texts], lengths) + positions
    rest, last = -int(ends[-1]) % multiple, segments[-1]

    def fill(values: NDArray[Any]) -> Tensor:
        return _tensor(np.pad(values, (0, rest)))[None]

    return Pack(
        layout="packed",
        input_ids=fill(tokens.input_ids[source]),
        positions=fill(positions),
        type_ids=None if tokens.type_ids is None else fill(tokens.type_ids[source]),
        attention_mask=None,
        starts=_tensor(starts),
        lengths=_tensor(lengths),
        numbers=_tensor(numbers),
        segments=(*segments[:-1], replace(last, tokens=range(last.tokens.start, last.tokens.stop + rest))),
    )


def _padded(
    tokens: Tokens,
    texts: NDArray[np.int64],
    lengths: NDArray[np.int64],
    numbers: NDArray[np.int64],
    segments: tuple[Segment, ...],
) -> Pack:
    positions = np.broadcast_to(np.arange(lengths.max()), (len(texts), int(lengths.max())))
    real = positions < lengths[:, None]
    source = tokens.offsets[texts][:, None] + np.minimum(positions, lengths[:, None] - 1)
    return Pack(
        layout="padded",
        input_ids=_tensor(tokens.input_ids[source]),
        positions=_tensor(np.ascontiguousarray(positions)),
        type_ids=None if tokens.type_ids is None else _tensor(tokens.type_ids[source]),
        attention_mask=_tensor(real.astype(np.int64)),
        starts=_tensor(np.zeros(len(texts), dtype=np.int64)),
        lengths=_tensor(lengths),
        numbers=_tensor(numbers),
        segments=segments,
    )


def even_runs(lengths: NDArray[np.signedinteger[Any]], count: int) -> list[tuple[int, int]]:
    """Returns where at most `count` runs of texts start and end, of about as many tokens each, none empty."""
    middle = np.cumsum(lengths) - lengths / 2
    runs = np.minimum(middle * count // max(1, int(lengths.sum())), count - 1)
    borders = [0, *(np.flatnonzero(np.diff(runs)) + 1).tolist(), len(lengths)]
    return list(pairwise(borders))


def bucket_width(length: int) -> int:
    """Returns the number of positions that attention gives a text: its length rounded up by at most about a sixth."""
    step = max(4, 1 << max(0, length.bit_length() - 3))
    return -(-length // step) * step


def _buckets(
    starts: NDArray[np.int64], lengths: NDArray[np.int64], segments: tuple[Segment, ...]
) -> tuple[Bucket, ...]:
    widths = np.array([bucket_width(int(length)) for length in range(int(lengths.max()) + 1)])[lengths]
    slots = np.concatenate([np.full(len(segment.texts), segment.slot) for segment in segments])
    buckets = []
    for width in np.unique(widths):
        texts = np.flatnonzero(widths == width)
        steps = np.arange(width)
        valid = steps < lengths[texts, None]
        index = starts[texts, None] + np.minimum(steps, lengths[texts, None] - 1)
        shares = tuple(zip(*_runs(slots[texts]), strict=True))
        seen = None if valid.all() else _tensor(valid, keep_type=True)
        buckets.append(Bucket(int(width), _tensor(texts), _tensor(index), seen, shares))
    return tuple(buckets)


def _runs(values: NDArray[np.int64]) -> tuple[list[int], list[int]]:
    """Returns each run's value and length; texts of one trial are neighbours, so a slot has one run."""
    borders = np.flatnonzero(np.diff(values)) + 1
    edges = [0, *borders.tolist(), len(values)]
    return [int(values[edge]) for edge in edges[:-1]], [int(length) for length in np.diff(edges)]


def _tensor(array: NDArray[np.generic], keep_type: bool = False) -> Tensor:
    tensor = torch.from_numpy(np.ascontiguousarray(array if keep_type else array.astype(np.int64)))
    return tensor.to(device())
