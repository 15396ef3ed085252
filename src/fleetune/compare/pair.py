"""Two configurations against each other: how far apart, how sure.

A claim has to hold for other seeds *and* other texts. So p is the larger of two: the exact sign-flip test over seeds,
which assumes nothing of their distribution and cannot fall below 2 / 2^n with n seeds, and the test behind the
interval, in which seeds and texts both vary.

Holm's correction is over all pairs that could have been asked, also where only those with the chosen row are shown:
validation chooses among the same trained seeds that are then tested, and what was luck there is luck on test too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fleetune.compare.intervals import CONFIDENCE, Interval, Uncertainty, difference_interval, uncertainty
from fleetune.compare.row import Row, scored_trials
from fleetune.compare.tests import SIGNIFICANT, holm, mcnemar, seeds_needed, sign_flip
from fleetune.metrics import MINIMISED

TAIL = 1.0 - CONFIDENCE


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
        interval: 95 % interval of the difference over seeds and texts, of one seed over texts alone; None where too
            little is known.
        p_seeds: Sign-flip test over seeds; None where they have none in common.
        p_texts: McNemar's test over texts, of the right answers, given these trained classifiers.
        p: The larger of `p_seeds` and the test behind `interval`; None where it cannot be had.
        p_adjusted: After Holm's correction over `corrected_for` pairs.
        simultaneous: As `interval`, holding for so many pairs together (Bonferroni); None below two seeds.
        corrected_for: How many pairs could have been asked.
        seeds_needed: Fewest common seeds with which the pair could become significant among so many pairs.
    """

    a: str
    b: str
    data: str
    metric: str
    seeds: int
    difference: float
    interval: Interval | None
    p_seeds: float | None
    p_texts: float | None
    p: float | None
    p_adjusted: float | None = None
    simultaneous: Interval | None = None
    corrected_for: int = 0
    seeds_needed: int = 0

    @property
    def is_significant(self) -> bool:
        """Whether the difference is demonstrated."""
        return self.p_adjusted is not None and self.p_adjusted < SIGNIFICANT

    def favours(self, name: str) -> bool:
        """Returns whether the row called `name`, one of the two, has the better mean."""
        gain = self.difference if self.a == name else -self.difference
        return gain < 0 if self.metric in MINIMISED else gain > 0

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
            "corrected_for": self.corrected_for,
            "seeds_needed": self.seeds_needed,
        }


@dataclass(frozen=True)
class Difference:
    """What two rows on the same texts differ by.

    Attributes:
        by_seed: The difference of each common seed.
        known: How sure their mean is.
    """

    by_seed: tuple[float, ...]
    known: Uncertainty


def difference_of(a: Row, b: Row) -> Difference | None:
    """Returns by how much `a` lies above `b`, seed by seed; None where they share no seed or not their texts.

    A baseline, which has no seeds, is set against every seed of the other.
    """
    if a.texts != b.texts or a.texts < 2 or not (a.draws and b.draws):
        return None
    pairs = _common(a, b)
    differences = [a.scores[one] - b.scores[other] for one, other in pairs]
    if not pairs or not all(map(math.isfinite, differences)):
        return None
    draws = np.stack([a.draws[one] - b.draws[other] for one, other in pairs])
    known = uncertainty(differences, draws, a.texts)
    return None if known is None else Difference(tuple(differences), known)


def tested(pairs: Sequence[tuple[Row, Row]], split: str, family: int) -> list[PairTest]:
    """Returns the tests of `pairs`, which share one correction.

    Args:
        pairs: Those that are asked for.
        split: What was scored.
        family: How many pairs could have been asked, and are corrected for.
    """
    found = [_tested(a, b, split, family) for a, b in pairs]
    adjusted = iter(holm([test.p for test in found if test.p is not None], family))
    return [
        replace(
            test,
            p_adjusted=None if test.p is None else next(adjusted),
            corrected_for=family,
            seeds_needed=seeds_needed(family),
        )
        for test in found
    ]


def _tested(a: Row, b: Row, split: str, pairs: int) -> PairTest:
    found, data = difference_of(a, b), a.configuration.first.data
    if found is None:
        return PairTest(a.name, b.name, data, a.metric, 0, a.mean - b.mean, None, None, None, None)
    mean = float(np.mean(found.by_seed))
    several = len(found.by_seed) > 1
    p_seeds = sign_flip(found.by_seed)
    return PairTest(
        a.name,
        b.name,
        data,
        a.metric,
        len(found.by_seed),
        mean,
        difference_interval(mean, found.known, a.metric),
        p_seeds,
        _p_texts(a, b, split),
        max(p_seeds, found.known.p_value(mean)) if several else p_seeds,
        simultaneous=difference_interval(mean, found.known, a.metric, TAIL / pairs) if several else None,
    )


def _common(a: Row, b: Row) -> list[tuple[int, int]]:
    if a.is_baseline or b.is_baseline:
        return [(one, other) for one in a.scores for other in b.scores]
    return [(seed, seed) for seed in a.scores if seed in b.scores]


def _p_texts(a: Row, b: Row, split: str) -> float:
    right = [{trial.seed: trial.correct(split) for trial in scored_trials(row.configuration, split)} for row in (a, b)]
    pairs = _common(a, b)
    return mcnemar(np.stack([right[0][one] for one, _ in pairs]), np.stack([right[1][other] for _, other in pairs]))
