"""How far apart two means over seeds must lie before the spread over seeds alone tells them apart."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from fleetune.compare.row import CONFIDENCE, Row

ROUNDING = 1e-12


@dataclass(frozen=True)
class SeedSpread:
    """The spread over seeds, pooled over configurations.

    Two or three seeds say next to nothing of one configuration's spread. What all configurations' seeds say
    together serves better, if their spreads are alike; one that spreads wide makes fewer differences count.

    Attributes:
        deviation: Pooled standard deviation over seeds.
        degrees: Its degrees of freedom.
        configurations: How many configurations are compared.
    """

    deviation: float
    degrees: int
    configurations: int

    def tells_apart(self, one: Row, other: Row) -> bool:
        """Returns whether the means differ by more than chance over seeds would make any two of the rows differ.

        A baseline's mean has no chance over seeds in it.

        Source: Tukey's range test in Kramer's form for unequal numbers of seeds (Kramer, 1956).
        """
        seeds = sum(0.0 if row.is_baseline else 1.0 / len(row.scores) for row in (one, other))
        needed = _range_quantile(self.configurations, self.degrees) * self.deviation * math.sqrt(seeds / 2.0)
        return abs(one.mean - other.mean) > needed + ROUNDING


def pooled_spread(rows: Sequence[Row]) -> SeedSpread | None:
    """Returns the spread of rows on the same data; None if none of them has two seeds."""
    usable = [row for row in rows if math.isfinite(row.mean) and not row.degenerate]
    degrees = sum(len(row.scores) - 1 for row in usable)
    if not degrees:
        return None
    squares = sum((row.spread or 0.0) ** 2 * (len(row.scores) - 1) for row in usable)
    return SeedSpread(math.sqrt(squares / degrees), degrees, max(2, sum(math.isfinite(row.mean) for row in rows)))


@functools.cache
def _range_quantile(groups: int, degrees: int) -> float:
    from scipy.stats import studentized_range

    return float(studentized_range.ppf(CONFIDENCE, groups, degrees))
