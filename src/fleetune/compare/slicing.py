"""Texts that have something in common: a length, or a value of a user's column."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fleetune.compare.held_out import HeldOutTexts

FEWEST_TEXTS = 10
RARE = f"(fewer than {FEWEST_TEXTS} texts each)"
LENGTH, LABEL = "length", "label"
MOST_LENGTHS = 4


@dataclass(frozen=True)
class Slice:
    """Texts that have something in common.

    Attributes:
        column: `length`, or the name of a user's column.
        value: What they have in common.
        texts: Their places in the split, ascending.
    """

    column: str
    value: str
    texts: NDArray[np.int64]


def slices_of(held_out: HeldOutTexts) -> list[Slice]:
    """Returns the parts of the split by length (up to four of equal size), then by each of the user's columns.

    Values with fewer than ten texts are one part together. A column that leaves one part alone is left out.
    """
    parts = _by_length(held_out)
    for name, values in held_out.slices.items():
        column = f"{name} (column)" if name in (LENGTH, LABEL) else name
        counts = Counter(values)
        kept = [value if counts[value] >= FEWEST_TEXTS else RARE for value in values]
        parts += _parts(column, kept, sorted(set(kept), key=lambda value: (value == RARE, value)))
    return parts


def _by_length(held_out: HeldOutTexts) -> list[Slice]:
    unit = "characters" if held_out.tokens is None else "tokens"
    lengths = np.array([len(text) for text in held_out.texts]) if held_out.tokens is None else held_out.tokens
    count = min(MOST_LENGTHS, len(lengths) // FEWEST_TEXTS)
    if count < 2:
        return []
    cuts = np.unique(np.quantile(lengths, np.arange(1, count) / count, method="inverted_cdf"))
    places = np.searchsorted(cuts, lengths, side="left")
    names = {}
    for place in np.unique(places):
        low, high = lengths[places == place].min(), lengths[places == place].max()
        names[place] = f"{low:,} {unit}" if low == high else f"{low:,} to {high:,} {unit}"
    return _parts(LENGTH, [names[place] for place in places], list(names.values()))


def _parts(column: str, values: Sequence[str], order: Iterable[str]) -> list[Slice]:
    owners: dict[str, list[int]] = {value: [] for value in order}
    for place, value in enumerate(values):
        owners[value].append(place)
    return [Slice(column, value, np.array(texts)) for value, texts in owners.items()] if len(owners) > 1 else []
