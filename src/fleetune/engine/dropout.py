"""Dropout whose masks depend on a trial's seed, step and place alone, never on its neighbours."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from fleetune.runtime import random_words

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


@dataclass
class ForwardState:
    """What every changed module of a backbone knows of the forward pass under way.

    Attributes:
        pack: Its input.
        streams: Each slot's dropout stream; empty in evaluation.
        calls: How often each place was passed, since some architectures share one module between layers.
    """

    pack: Pack | None = None
    streams: dict[int, Stream] = field(default_factory=dict)
    calls: Counter[tuple[int, str]] = field(default_factory=Counter)

    def begin(self, pack: Pack, streams: dict[int, Stream]) -> None:
        """Sets the pack and the streams of the forward pass that begins."""
        self.pack, self.streams = pack, streams
        self.calls.clear()

    def words(self, slot: int, place: str) -> np.random.SFC64:
        """Returns the random words for this passage of `place` by the trial in `slot`."""
        stream = self.streams[slot]
        call = self.calls[slot, place]
        self.calls[slot, place] += 1
        return random_words("dropout", stream.seed, stream.step, stream.micro_step, place, call)

    def drop(self, x: Tensor, rate: float, slot: int, place: str) -> Tensor:
        """Returns one trial's `x` with dropout; `x` itself in evaluation or at rate 0."""
        if rate == 0.0 or slot not in self.streams:
            return x
        return x * keep_mask(self.words(slot, place), x.shape, rate, x.dtype).to(x.device)


def keep_mask(words: np.random.SFC64, shape: Sequence[int], rate: float, dtype: torch.dtype) -> Tensor:
    """Returns a mask of `shape`: 0 with probability `rate`, else 1 / (1 - rate) (Srivastava et al., 2014).

    Both follow the rate rounded to 1/65536, so the expectation is exactly 1.
    """
    dropped = round(rate * LEVELS)
    size = prod(shape)
    raw = words.random_raw(-(-size // 4)).view(np.int16)[:size]
    keep = torch.from_numpy(raw).view(tuple(shape)) >= dropped - LEVELS // 2
    return keep.to(dtype).mul_(LEVELS / (LEVELS - dropped))


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
        if len(pack.segments) == 1:
            slot = pack.segments[0].slot
            return state.drop(x, self.p if state.streams[slot].backbone else 0.0, slot, self.place)
        masks = []
        for segment in pack.segments:
            shape = (x.shape[0], len(segment.tokens), *x.shape[2:])
            if state.streams[segment.slot].backbone:
                masks.append(keep_mask(state.words(segment.slot, self.place), shape, self.p, x.dtype))
            else:
                masks.append(torch.ones(shape, dtype=x.dtype))
        return x * torch.cat(masks, dim=1).to(x.device)
