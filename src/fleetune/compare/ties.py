"""Which configurations nothing tells from the one that validation chooses.

A row is set apart where the difference to the chosen one lies outside what seeds and texts explain, for all rows
together: Bonferroni's simultaneous intervals. Two or three seeds say next to nothing of one configuration's spread;
so the spread over seeds is pooled over configurations, as in a one-way analysis of variance. It is a reading that
assumes like spreads, and decides who may be recommended. What is called significant needs more (`pair.py`).

Where seeds are few and wild, intervals reach everywhere and would tie all. So a row is no candidate either if its best
seed does not come up to the worst seed of the chosen row, by more than the texts explain. "Outpaced" is no claim, only
a reason not to ship it unseen.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from fleetune.compare.intervals import CONFIDENCE, ROUNDING, Interval
from fleetune.compare.pair import PairTest, difference_of
from fleetune.compare.row import Row, Standing
from fleetune.metrics import MINIMISED


@dataclass(frozen=True)
class SeedSpread:
    """The spread over seeds, pooled over configurations on the same data.

    Attributes:
        variance: Of one seed.
        degrees: Its degrees of freedom.
    """

    variance: float
    degrees: int


def pooled_spread(rows: Sequence[Row]) -> SeedSpread | None:
    """Returns the spread of rows on the same data; None if none of them has two seeds."""
    usable = [row for row in rows if math.isfinite(row.mean) and not row.degenerate]
    degrees = sum(len(row.scores) - 1 for row in usable)
    if not degrees:
        return None
    squares = sum((row.spread or 0.0) ** 2 * (len(row.scores) - 1) for row in usable)
    return SeedSpread(squares / degrees, degrees)


def with_ties(rows: Sequence[Row], chosen: Row | None, pairs: int, tests: Sequence[PairTest] = ()) -> list[Row]:
    """Returns rows on the same data, each with its standing against `chosen`.

    Args:
        rows: The rows.
        chosen: The row that validation chooses; None where there is none.
        pairs: How many pairs the intervals are to hold for.
        tests: What a test of its own demonstrates of a row, this reading does not take back.
    """
    spread = pooled_spread(rows)
    return [
        replace(row, standing=_tested(row, chosen, tests) or _standing(row, chosen, spread, max(pairs, 1)))
        for row in rows
    ]


def _tested(row: Row, chosen: Row | None, tests: Sequence[PairTest]) -> Standing | None:
    for test in tests:
        if chosen is not None and test.is_significant and {test.a, test.b} == {row.name, chosen.name}:
            return "behind" if test.favours(chosen.name) else "ahead"
    return None


def _standing(row: Row, chosen: Row | None, spread: SeedSpread | None, tests: int) -> Standing:
    if chosen is None or not math.isfinite(row.mean):
        return "not comparable"
    if row is chosen:
        return "chosen"
    found = difference_of(chosen, row)
    if found is None:
        return "not comparable"
    if spread is None:
        return "tied"
    seeds = sum(0.0 if one.is_baseline else 1.0 / len(one.scores) for one in (row, chosen))
    known = replace(found.known, seeds=spread.variance * seeds, seeds_degrees=spread.degrees)
    difference, tail = chosen.mean - row.mean, (1.0 - CONFIDENCE) / tests
    if _reaches_zero(known.interval(difference, tail)):
        of_texts = replace(known, seeds=0.0).interval(difference, tail)
        return "tied" if _reaches_zero(of_texts) or not _is_below_every_seed(row, chosen) else "outpaced"
    return "behind" if (difference > 0) != (row.metric in MINIMISED) else "ahead"


def _reaches_zero(interval: Interval) -> bool:
    return interval[0] <= ROUNDING and interval[1] >= -ROUNDING


def _is_below_every_seed(row: Row, chosen: Row) -> bool:
    own, others = row.scores.values(), chosen.scores.values()
    return min(own) > max(others) if row.metric in MINIMISED else max(own) < min(others)
