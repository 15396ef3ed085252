"""How the texts of a batch lie in memory: end to end without padding, or side by side with padding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from fleetune.runtime import device

if TYPE_CHECKING:
    from torch import Tensor

    from fleetune.data.tokens import Tokens

Layout = Literal["packed", "padded"]


@dataclass(frozen=True)
class Segment:
    """One trial's share of a pack: a run of texts and the run of their tokens."""

    slot: int
    texts: range
    tokens: range


@dataclass(frozen=True)
class Bucket:
    """Texts of about one length, as attention sees them.

    Attributes:
        width: Number of positions; a function of a text's own length, so that neighbours do not change it.
        index: `(texts, width)` token positions in the pack; past a text's end its last token again, so that no
            value of another text is ever read.
        valid: `(texts, width)` whether a position is within the text; None if all are.
        shares: `(slot, texts)` of each trial, in the order of the rows.
    """

    width: int
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
        segments: Each trial's share, in order.
        buckets: Texts grouped for attention; empty if padded.
        unbucket: `(tokens,)` where each token of the pack stands in the buckets laid end to end; None if padded.
    """

    layout: Layout
    input_ids: Tensor
    positions: Tensor
    type_ids: Tensor | None
    attention_mask: Tensor | None
    starts: Tensor
    lengths: Tensor
    segments: tuple[Segment, ...]
    buckets: tuple[Bucket, ...]
    unbucket: Tensor | None

    @property
    def tokens(self) -> int:
        """Number of real tokens."""
        return self.segments[-1].tokens.stop


def pack_texts(tokens: Tokens, batches: Sequence[tuple[int, NDArray[np.int64]]], layout: Layout) -> Pack:
    """Returns the pack of each trial's batch, given as (slot, indices into `tokens`), in that order.

    Raises:
        ValueError: If a padded pack is asked for several trials; they take turns there.
    """
    texts = np.concatenate([indices for _, indices in batches])
    lengths = tokens.lengths[texts].astype(np.int64)
    segments = _segments(batches, lengths)
    if layout == "padded":
        if len(batches) != 1:
            raise ValueError(f"a padded pack holds one trial, got {len(batches)}")
        return _padded(tokens, texts, lengths, segments)
    return _packed(tokens, texts, lengths, segments)


def _segments(batches: Sequence[tuple[int, NDArray[np.int64]]], lengths: NDArray[np.int64]) -> tuple[Segment, ...]:
    segments, text, token = [], 0, 0
    for slot, indices in batches:
        count = len(indices)
        size = int(lengths[text : text + count].sum())
        segments.append(Segment(slot, range(text, text + count), range(token, token + size)))
        text, token = text + count, token + size
    return tuple(segments)


def _packed(
    tokens: Tokens, texts: NDArray[np.int64], lengths: NDArray[np.int64], segments: tuple[Segment, ...]
) -> Pack:
    ends = np.cumsum(lengths)
    starts = ends - lengths
    positions = np.arange(ends[-1]) - np.repeat(starts, lengths)
    source = np.repeat(tokens.offsets[texts], lengths) + positions
    buckets, unbucket = _buckets(starts, lengths, segments)
    return Pack(
        layout="packed",
        input_ids=_tensor(tokens.input_ids[source])[None],
        positions=_tensor(positions)[None],
        type_ids=None if tokens.type_ids is None else _tensor(tokens.type_ids[source])[None],
        attention_mask=None,
        starts=_tensor(starts),
        lengths=_tensor(lengths),
        segments=segments,
        buckets=buckets,
        unbucket=unbucket,
    )


def _padded(
    tokens: Tokens, texts: NDArray[np.int64], lengths: NDArray[np.int64], segments: tuple[Segment, ...]
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
        segments=segments,
        buckets=(),
        unbucket=None,
    )


def bucket_width(length: int) -> int:
    """Returns the number of positions that attention gives a text: its length rounded up by at most about a sixth."""
    step = max(4, 1 << max(0, length.bit_length() - 3))
    return -(-length // step) * step


def _buckets(
    starts: NDArray[np.int64], lengths: NDArray[np.int64], segments: tuple[Segment, ...]
) -> tuple[tuple[Bucket, ...], Tensor]:
    widths = np.array([bucket_width(int(length)) for length in range(int(lengths.max()) + 1)])[lengths]
    slots = np.concatenate([np.full(len(segment.texts), segment.slot) for segment in segments])
    buckets, unbucket, offset = [], np.empty(int(lengths.sum()), dtype=np.int64), 0
    for width in np.unique(widths):
        rows = np.flatnonzero(widths == width)
        steps = np.arange(width)
        valid = steps < lengths[rows, None]
        index = starts[rows, None] + np.minimum(steps, lengths[rows, None] - 1)
        unbucket[index[valid]] = offset + np.flatnonzero(valid.ravel())
        offset += index.size
        order, counts = _runs(slots[rows])
        shares = tuple(zip(order, counts, strict=True))
        buckets.append(
            Bucket(int(width), _tensor(index), None if valid.all() else _tensor(valid, keep_type=True), shares)
        )
    return tuple(buckets), _tensor(unbucket)


def _runs(values: NDArray[np.int64]) -> tuple[list[int], list[int]]:
    """Returns each run's value and length; texts of one trial are neighbours, so a slot has one run."""
    borders = np.flatnonzero(np.diff(values)) + 1
    edges = [0, *borders.tolist(), len(values)]
    return [int(values[edge]) for edge in edges[:-1]], [int(length) for length in np.diff(edges)]


def _tensor(array: NDArray[np.generic], keep_type: bool = False) -> Tensor:
    tensor = torch.from_numpy(np.ascontiguousarray(array if keep_type else array.astype(np.int64)))
    return tensor.to(device())
