"""Learned keys and values that each text's tokens see before the text's own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn import functional

if TYPE_CHECKING:
    from torch import Tensor, nn

    from fleetune.engine.layout import Bucket, Pack
    from fleetune.engine.site import Delta

PREFIXES = "fleetune_prefixes"
"""Attribute of an attention module: its deltas by slot."""


@dataclass(frozen=True)
class Prefixes:
    """The prefixes of a pack's trials at one attention module.

    Attributes:
        keys: `(trials, longest, key_heads, head_width)`; before a shorter prefix are zeros that nothing sees, so that
            all end where the texts begin.
        values: As `keys`.
        lengths: Each slot's own, 0 for a trial without.
        trials: `(texts,)` whose prefix each text of the pack sees, as a row of `keys`.
        seen: `(trials, longest)` which rows are there; None if all are.
    """

    keys: Tensor
    values: Tensor
    lengths: Mapping[int, int]
    trials: Tensor
    seen: Tensor | None

    @property
    def longest(self) -> int:
        """Length of the longest."""
        return self.keys.shape[1]

    def before(self, x: Tensor, learned: Tensor, bucket: Bucket) -> Tensor:
        """Returns `x` `(texts, heads, width, head_width)` of one bucket, before each text its prefix in `learned`."""
        own = learned.to(x.dtype)[self.trials[bucket.texts]].transpose(1, 2)
        return torch.cat([own, x], dim=2)

    def allowed(self, allowed: Tensor | None, bucket: Bucket) -> Tensor | None:
        """Returns which keys, prefixes included, a query may see, `(texts, 1, 1 or queries, keys)`; None if all."""
        if self.seen is None and allowed is None:
            return None
        texts, device = len(bucket.texts), bucket.texts.device
        if allowed is None:
            allowed = torch.ones(1, 1, 1, bucket.width, dtype=torch.bool, device=device)
        elif allowed.dim() == 2:
            allowed = allowed[None, None]
        if self.seen is None:
            own = torch.ones(1, 1, 1, self.longest, dtype=torch.bool, device=device)
        else:
            own = self.seen[self.trials[bucket.texts]][:, None, None]
        rows = allowed.shape[2]
        return torch.cat([one.expand(texts, 1, rows, -1) for one in (own, allowed)], dim=-1)

    def among_rows(self, keys: Tensor, values: Tensor, pack: Pack) -> tuple[Tensor, Tensor]:
        """Returns keys and values `(tokens, heads, head_width)` of a pack of one trial, the prefix before each text.

        What belongs to no text is left out.
        """
        count, lengths, texts = self.longest, pack.lengths, torch.arange(len(pack.lengths))
        starts = lengths.cumsum(0) - lengths + texts * count
        total = pack.real_tokens + len(lengths) * count
        owners = torch.repeat_interleave(texts, lengths + count, output_size=total)
        places = torch.arange(total) - starts[owners]
        source = torch.where(places < count, places, pack.starts[owners] + places)
        pairs = ((keys, self.keys), (values, self.values))
        both = [torch.cat([learned[0].to(x.dtype), x]).index_select(0, source) for x, learned in pairs]
        return both[0], both[1]


def prefixes_of(module: nn.Module, pack: Pack) -> Prefixes | None:
    """Returns the prefixes at an attention module, None if no trial of the pack has one."""
    deltas: Mapping[int, Delta] = getattr(module, PREFIXES, {})
    found = {segment.slot: deltas[segment.slot].prefix() for segment in pack.segments if segment.slot in deltas}
    if not found:
        return None
    first = next(iter(found.values()))[0]
    nothing = first[:0], first[:0]
    pairs = [found.get(segment.slot, nothing) for segment in pack.segments]
    lengths = [len(keys) for keys, _ in pairs]
    longest = max(lengths)
    keys, values = (
        torch.stack([functional.pad(pair[which], (0, 0, 0, 0, longest - len(pair[which]), 0)) for pair in pairs])
        for which in (0, 1)
    )
    seen = None
    if len(set(lengths)) > 1:
        seen = torch.from_numpy(np.arange(longest) >= longest - np.array(lengths)[:, None]).to(first.device)
    texts = np.repeat(np.arange(len(pairs)), [len(segment.texts) for segment in pack.segments])
    by_slot = {segment.slot: length for segment, length in zip(pack.segments, lengths, strict=True)}
    return Prefixes(keys, values, by_slot, torch.from_numpy(texts).to(first.device), seen)
