"""Which configurations nothing tells from the one that validation chooses.

A row is behind, or ahead, where the difference to the chosen one lies outside what seeds and texts explain, for all
pairs together: Bonferroni's simultaneous interval, or Holm's test (`pair.py`).

With few seeds these intervals reach everywhere and would tie all. So a row is no candidate either if its best seed does
not come up to the worst seed of the chosen row, by more than the texts explain. "Outpaced" is no claim, only a reason
not to ship it unseen.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import replace

from fleetune.compare.intervals import ROUNDING, Interval
from fleetune.compare.pair import TAIL, Difference, PairTest, difference_of
from fleetune.compare.row import Row, Standing
from fleetune.metrics import MINIMISED


def with_ties(rows: Sequence[Row], chosen: Row | None, family: int, tests: Sequence[PairTest] = ()) -> list[Row]:
    """Returns rows on the same data, each with its standing against `chosen`.

    Args:
        rows: The rows.
        chosen: The row that validation chooses; None where there is none.
        family: How many pairs the intervals are to hold for.
        tests: Those of the chosen row.
    """
    return [replace(row, standing=_standing(row, chosen, TAIL / max(family, 1), tests)) for row in rows]


def _standing(row: Row, chosen: Row | None, tail: float, tests: Sequence[PairTest]) -> Standing:
    if chosen is None or not math.isfinite(row.mean):
        return "not comparable"
    if row is chosen:
        return "chosen"
    found = difference_of(chosen, row)
    if found is None:
        return "not comparable"
    if len(chosen.scores) < 2:
        return "tied"
    if _is_told(found, tail) or _is_significant(row, chosen, tests):
        return "behind" if (statistics.fmean(found.by_seed) > 0) != (row.metric in MINIMISED) else "ahead"
    return "outpaced" if _is_outpaced(row, chosen, found, tail) else "tied"


def _is_told(found: Difference, tail: float) -> bool:
    """Returns whether seeds and texts do not explain the difference; of one common seed nobody knows."""
    several = len(found.by_seed) > 1
    return several and not _reaches_zero(found.known.interval(statistics.fmean(found.by_seed), tail))


def _is_significant(row: Row, chosen: Row, tests: Sequence[PairTest]) -> bool:
    return any(test.is_significant and {test.a, test.b} == {row.name, chosen.name} for test in tests)


def _is_outpaced(row: Row, chosen: Row, found: Difference, tail: float) -> bool:
    of_texts = replace(found.known, seeds=0.0).interval(chosen.mean - row.mean, tail)
    own, others = row.scores.values(), chosen.scores.values()
    is_worse = min(own) > max(others) if row.metric in MINIMISED else max(own) < min(others)
    return is_worse and not _reaches_zero(of_texts)


def _reaches_zero(interval: Interval) -> bool:
    return interval[0] <= ROUNDING and interval[1] >= -ROUNDING
