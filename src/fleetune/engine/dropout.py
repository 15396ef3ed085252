"""Dropout whose masks depend on a trial's seed, step and place alone, never on its neighbours or the layout."""

from __future__ import annotations

import hashlib
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from fleetune.engine.kernels import masks

if TYPE_CHECKING:
    from torch import Tensor

    from fleetune.engine.layout import Pack

LEVELS = 1 << 16
"""Rates are rounded to 1/65536: a mask element is a 16-bit word against a threshold."""


@dataclass(frozen=True)
class Stream:
    """What the masks of one trial's forward pass depend on."""

    seed: int
    step: int
    micro_step: int
    backbone: bool = True
    """Whether the backbone's own dropout acts."""
    head_rate: float | None = None
    """Rate in the head in the place of the configuration's."""


@dataclass(frozen=True)
class Threshold:
    """A dropout rate as the masks know it."""

    dropped: int
    """Words below this are dropped."""
    scale: float
    """Factor of what is kept; with the rounded rate, so that the expectation is exactly 1."""

    @classmethod
    def of(cls, rate: float) -> Threshold:
        """Returns the nearest threshold to `rate`."""
        dropped = round(rate * LEVELS)
        return cls(dropped, LEVELS / (LEVELS - dropped))


@dataclass(frozen=True)
class Mask:
    """What one passage of one place drops.

    Attributes:
        rows: Rows of the mask, in the shape of what it acts on without its last dimension.
        key: The 64-bit key of the place.
        rate: Probability of a zero.
    """

    rows: Tensor
    key: int
    rate: float

    def on(self, x: Tensor) -> Tensor:
        """Returns `x` `(*rows.shape, width)` with dropout. Where a kernel does it, gradients do not pass."""
        if x.device.type == "cpu":
            threshold = Threshold.of(self.rate)
            return masks.dropout(x, self.rows, self.key, threshold.dropped, threshold.scale)
        return x * keep_mask(self.key, self.rows, x.shape[-1], self.rate, x.dtype)


@dataclass(frozen=True)
class Passage:
    """Where a forward pass stands; see `ForwardState`."""

    pack: Pack | None
    streams: dict[int, Stream]
    calls: Counter[tuple[int, str]]
    full: Tensor | None


class ForwardState(threading.local):
    """What every changed module of a backbone knows of the forward pass under way; each thread has its own.

    Attributes:
        pack: Its input.
        streams: Each slot's dropout stream; empty in evaluation.
        calls: How often each place was passed, since some architectures share one module between layers.
        full: What keys and values of a narrowed layer see: all tokens, where the rest sees one of each text.
        apart: Whether what passes now belongs to no text: embeddings of relative positions, which all texts share.
        checkpointing: Whether layers keep their input alone, and are computed again in the backward pass.
    """

    def __init__(self) -> None:
        self.pack: Pack | None = None
        self.streams: dict[int, Stream] = {}
        self.calls: Counter[tuple[int, str]] = Counter()
        self.full: Tensor | None = None
        self.apart = False
        self.checkpointing = False

    def __deepcopy__(self, memo: dict[int, Any]) -> ForwardState:
        """Returns itself: what is copied of a backbone takes part in the same forward passes."""
        return self

    def begin(self, pack: Pack, streams: dict[int, Stream], checkpointing: bool = False) -> None:
        """Sets the pack and the streams of the forward pass that begins."""
        self.pack, self.streams, self.full, self.apart = pack, streams, None, False
        self.checkpointing = checkpointing
        self.calls.clear()

    def end(self) -> None:
        """Lets go of what the forward pass used."""
        self.pack, self.full = None, None

    def passage(self) -> Passage:
        """Returns where the forward pass stands."""
        return Passage(self.pack, self.streams, self.calls.copy(), self.full)

    @contextmanager
    def resumed(self, passage: Passage) -> Iterator[None]:
        """Puts this thread's forward pass back to `passage`, for the block alone."""
        before = self.passage()
        try:
            self._go_to(passage)
            yield
        finally:
            self._go_to(before)

    def _go_to(self, passage: Passage) -> None:
        self.pack, self.streams, self.full = passage.pack, passage.streams, passage.full
        self.calls = passage.calls.copy()

    def key(self, slot: int, place: str) -> int:
        """Returns the 64-bit key of the masks for this passage of `place` by the trial in `slot`."""
        stream, call = self.streams[slot], self.calls[slot, place]
        self.calls[slot, place] += 1
        return stream_key(stream, place, call)

    def drop(self, x: Tensor, rate: float, slot: int, place: str) -> Tensor:
        """Returns one trial's `x` `(…, width)` with dropout; `x` itself in evaluation or at rate 0."""
        if rate == 0.0 or slot not in self.streams or self.pack is None:
            return x
        rows = self._rows_apart(x) if self.apart else self.pack.rows_of(slot, x)
        if rows.shape != x.shape[:-1]:
            raise ValueError(f"{place} drops {tuple(x.shape)}, whose rows {tuple(rows.shape)} are not known")
        return apply_dropout(x, Mask(rows, self.key(slot, place), rate))

    @staticmethod
    def _rows_apart(x: Tensor) -> Tensor:
        # The same for every part of a batch, since all texts of the batch share what is dropped.
        return torch.arange(x.shape[:-1].numel(), device=x.device).view(x.shape[:-1])

    def backbone_rate(self, slot: int, rate: float) -> float:
        """Returns the rate at which the backbone's own dropout acts on a trial."""
        return rate if slot in self.streams and self.streams[slot].backbone else 0.0


def stream_key(stream: Stream, place: str, call: int = 0) -> int:
    """Returns the 64-bit key of the masks at one place in one forward pass."""
    facts = f"dropout\x1f{stream.seed}\x1f{stream.step}\x1f{stream.micro_step}\x1f{place}\x1f{call}"
    return int.from_bytes(hashlib.blake2b(facts.encode(), digest_size=8).digest(), "little")


def apply_dropout(x: Tensor, mask: Mask) -> Tensor:
    """Returns `x` `(*rows.shape, width)` with dropout by `mask`, and lets gradients pass."""
    if x.device.type == "cpu":
        result: Tensor = _Dropout.apply(x, mask)
        return result
    return mask.on(x)


def keep_mask(key: int, rows: Tensor, width: int, rate: float, dtype: torch.dtype) -> Tensor:
    """Returns a mask `(*rows.shape, width)`: 0 with probability `rate`, else 1 / (1 - rate) (Srivastava et al., 2014).

    Both follow the rate rounded to 1/65536, so the expectation is exactly 1.
    """
    threshold = Threshold.of(rate)
    if rows.device.type == "cpu":
        ones = torch.ones((), dtype=dtype).expand(*rows.shape, width)
        return masks.dropout(ones, rows, key, threshold.dropped, threshold.scale)
    keep = masks.torch_words(key, rows, width) >= threshold.dropped
    return keep.to(dtype).mul_(threshold.scale)


class _Dropout(torch.autograd.Function):
    """Dropout that makes its mask again in the backward pass, where reading it would cost as much."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, mask: Mask) -> Tensor:
        ctx.mask = mask
        return mask.on(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return ctx.mask.on(gradients[0]), None


class FleetDropout(nn.Module):
    """Takes the place of one `nn.Dropout` of the backbone: each trial's segment has its own stream.

    Args:
        rate: Probability of a zero.
        place: Path of the module, which keys the stream.
        state: The forward pass under way.
    """

    def __init__(self, rate: float, place: str, state: ForwardState) -> None:
        super().__init__()
        # Hugging Face attention modules read `.p` of their dropout, so the field keeps torch's name.
        self.p = rate
        self.place = place
        self.state = state

    def forward(self, x: Tensor) -> Tensor:
        """Returns `x` `(1, tokens, width)` or `(texts, longest, width)` with dropout."""
        pack, state = self.state.pack, self.state
        if self.p == 0.0 or pack is None or not state.streams:
            return x
        slots = [segment.slot for segment in pack.segments]
        if len(slots) == 1:
            return state.drop(x, state.backbone_rate(slots[0], self.p), slots[0], self.place)
        pieces = x.split(pack.sizes_of(x.shape[1]), dim=1)
        rates = [state.backbone_rate(slot, self.p) for slot in slots]
        dropped = [state.drop(p, rate, slot, self.place) for p, rate, slot in zip(pieces, rates, slots, strict=True)]
        return torch.cat(dropped, dim=1)
