"""Two configurations against each other: how far apart, how sure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

SIGNIFICANT = 0.05


@dataclass(frozen=True)
class PairTest:
    """The difference of two configurations on the same texts, over the seeds that both have.

    Attributes:
        a: Name of one configuration; where one is asked about, that one.
        b: Name of the other.
        data: Name of the data.
        metric: Name of the metric.
        seeds: Number of common seeds.
        difference: Mean of `a` minus mean of `b`.
        interval: 95 % interval of the difference over seeds and texts; None where too little is known.
        p_seeds: Exact sign-flip test over seeds; None where neither has seeds.
        p_texts: McNemar's test over texts, of the right answers, given these trained classifiers.
        p: The larger of `p_seeds` and the test behind `interval`; None where it cannot be had.
        p_adjusted: After Holm's correction over all pairs asked.
        seeds_needed: Fewest common seeds with which the pair could become significant among so many pairs.
    """

    a: str
    b: str
    data: str
    metric: str
    seeds: int
    difference: float
    interval: tuple[float, float] | None
    p_seeds: float | None
    p_texts: float | None
    p: float | None
    p_adjusted: float | None
    seeds_needed: int

    @property
    def is_significant(self) -> bool:
        """Whether the difference is demonstrated."""
        return self.p_adjusted is not None and self.p_adjusted < SIGNIFICANT

    def to_json(self) -> dict[str, Any]:
        """Returns the fields, with null for what is not known."""
        return {
            "a": self.a,
            "b": self.b,
            "data": self.data,
            "metric": self.metric,
            "seeds": self.seeds,
            "difference": self.difference,
            "interval": list(self.interval) if self.interval else None,
            "p_seeds": self.p_seeds,
            "p_texts": self.p_texts,
            "p": self.p,
            "p_adjusted": self.p_adjusted,
            "significant": self.is_significant,
            "seeds_needed": self.seeds_needed,
        }
