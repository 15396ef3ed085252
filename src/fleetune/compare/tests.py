"""Tests of paired differences, and what many tests at once do to them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fleetune.runtime import random_stream

SIGNIFICANT = 0.05
MOST_EXACT = 18
"""Seeds up to which every pattern of signs is counted; beyond, `FLIPS` of them are drawn."""
FLIPS = 200_000
ROUNDING = 1e-12


def sign_flip(differences: Sequence[float]) -> float:
    """Returns the two-sided p-value of the paired sign-flip test: is the mean of the differences 0?

    If the two configurations are alike, each seed's difference could as well have the other sign. p is the share of
    all patterns of signs whose mean lies at least as far from 0 as the one that was seen, so with n seeds never below
    2 / 2^n (Fisher, 1935; Edgington and Onghena, 2007, chapter 6). Exact up to 18 seeds.
    """
    values = np.asarray(differences, dtype=np.float64)
    if not len(values) or not np.abs(values).sum() > ROUNDING:
        return 1.0
    seen = abs(values.sum()) - ROUNDING * np.abs(values).sum()
    if len(values) <= MOST_EXACT:
        # A pattern and its opposite lie equally far from 0: the first sign may stay.
        sums = values[:1]
        for value in values[1:]:
            sums = np.concatenate([sums + value, sums - value])
        return float((np.abs(sums) >= seen).mean())
    signs = random_stream("flips", len(values)).choice(np.array([-1.0, 1.0]), size=(FLIPS, len(values)))
    return float((1 + (np.abs(signs @ values) >= seen).sum()) / (1 + FLIPS))


def mcnemar(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    """Returns the two-sided p-value of McNemar's test: do two trained classifiers get equally many texts right?

    With one seed it is the exact test on the texts that one of them alone gets right (McNemar, 1947). With several, a
    text's seeds are no independent texts: they are one cluster (Durkalski et al., 2003, Statistics in Medicine 22).

    Args:
        a: Whether each text is right by each seed's classifier `(seeds, texts)`.
        b: The same of the other configuration.
    """
    from scipy.stats import binomtest, norm

    gained = np.sum(a, axis=0, dtype=np.int64) - np.sum(b, axis=0, dtype=np.int64)
    if not gained.any():
        return 1.0
    if len(a) == 1:
        return float(binomtest(int((gained > 0).sum()), int((gained != 0).sum())).pvalue)
    return float(2.0 * norm.sf(abs(gained.sum()) / math.sqrt((gained**2).sum())))


def holm(values: Sequence[float], family: int | None = None) -> list[float]:
    """Returns the p-values after Holm's correction (1979), which holds whatever the tests have in common.

    Args:
        values: The p-values.
        family: How many tests they are part of. Of the others nothing need be known: the smallest of these is at best
            the smallest of all, so that what is rejected here would be there.
    """
    tests = len(values) if family is None else max(family, len(values))
    order = np.argsort(values, kind="stable")
    adjusted, highest = [0.0] * len(values), 0.0
    for rank, place in enumerate(order.tolist()):
        highest = max(highest, min(1.0, (tests - rank) * values[place]))
        adjusted[place] = highest
    return adjusted


def seeds_needed(tests: int) -> int:
    """Returns the fewest seeds with which `sign_flip` can fall below 0.05 after correction for so many tests."""
    return math.floor(math.log2(2.0 * max(tests, 1) / SIGNIFICANT)) + 1
