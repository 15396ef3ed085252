"""How sure a mean over seeds is: seeds and texts each make it vary, and both are in the interval.

A score of one trial hangs on its seed (start, order, dropout) and on the texts it is scored on. With S seeds scored on
the same N texts, the mean over seeds has the variance

    V = V_seeds + V_texts,    V_seeds = var_s(score_s) / S,    V_texts = mean over s != t of cov(score_s, score_t),

where the covariance is over texts drawn anew (`resampling.py`). V_seeds holds the variance between seeds together with
what is noise of a single seed on a single text; the covariance between *different* seeds holds what the texts do to all
of them, and nothing of that noise, so that nothing counts twice. It is the hierarchical bootstrap over seeds and texts
(Davison and Hinkley, 1997, section 3.8) with the level of the seeds in closed form, because drawing from three or five
seeds makes intervals far too short: percentile intervals of five seeds cover some 82 % where 95 % is said
(tests/unit/test_intervals.py has the simulation).

The interval is mean ± q · sqrt(V). V_seeds has S − 1 degrees of freedom, V_texts N − 1; q is Student's quantile of
each, weighted by its share of V (Cochran and Cox, 1957, section 4.4). Of a single seed nothing is known of V_seeds: the
interval is then about the texts alone, and says so.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Interval = tuple[float, float]
FloatArray = NDArray[np.float64]

CONFIDENCE = 0.95
LOWER_BOUND = {"matthews": -1.0}
UNBOUNDED_ABOVE = frozenset({"log_loss", "loss"})
WITHOUT_INTERVAL = frozenset({"ece"})
PROPORTIONS = frozenset({"accuracy", "exact_match"})
ROUNDING = 1e-12


@dataclass(frozen=True)
class Uncertainty:
    """The variance of a mean over seeds, or of a difference of two, by where it comes from.

    Attributes:
        seeds: Variance that seeds bring, as of the mean; 0 where there is one seed, or none is needed.
        seeds_degrees: Its degrees of freedom.
        texts: Variance that the choice of texts brings.
        texts_degrees: Its degrees of freedom.
    """

    seeds: float
    seeds_degrees: int
    texts: float
    texts_degrees: int

    @property
    def deviation(self) -> float:
        """Standard deviation of the mean."""
        return math.sqrt(self.seeds + self.texts)

    def quantile(self, tail: float) -> float:
        """Returns how many deviations the mean lies off with probability `tail`, on either side together."""
        from scipy.stats import t

        total = self.seeds + self.texts
        if total <= 0.0:
            return 0.0
        parts = ((self.seeds, self.seeds_degrees), (self.texts, self.texts_degrees))
        return sum(share / total * float(t.isf(tail / 2.0, max(degrees, 1))) for share, degrees in parts if share > 0.0)

    def interval(self, mean: float, tail: float = 1.0 - CONFIDENCE) -> Interval:
        """Returns the ends between which the true mean lies with probability 1 − `tail`."""
        half = self.quantile(tail) * self.deviation
        return mean - half, mean + half

    def p_value(self, mean: float) -> float:
        """Returns the probability of a mean at least so far from 0 if the true one is 0: the `tail` that meets it."""
        from scipy.optimize import brentq

        if abs(mean) <= ROUNDING:
            return 1.0
        if self.deviation <= ROUNDING:
            return 0.0
        wanted = abs(mean) / self.deviation
        lowest = 1e-15
        if self.quantile(lowest) <= wanted:
            return lowest
        return float(brentq(lambda tail: self.quantile(tail) - wanted, lowest, 1.0, xtol=1e-15, rtol=1e-12))


def uncertainty(scores: Sequence[float], draws: FloatArray, texts: int) -> Uncertainty | None:
    """Returns the uncertainty of the mean of `scores`; of one score, what the texts bring.

    None where the score is not defined on half of the draws or more, such as the area under the ROC curve of a label
    that hardly occurs.

    Args:
        scores: One a seed; or differences, one a common seed.
        draws: The same on texts drawn anew `(seeds, draws)`.
        texts: How many texts there are.
    """
    seeds = len(scores)
    defined = np.isfinite(draws).all(axis=0)
    if 2 * int(defined.sum()) <= draws.shape[1]:
        return None
    draws = draws[:, defined]
    # Texts drawn from N have a variance that is (N - 1) / N of the true one.
    drawn = draws - draws.mean(axis=1, keepdims=True)
    of_each = float((drawn**2).sum(axis=1).mean()) / max(draws.shape[1] - 1, 1) * texts / max(texts - 1, 1)
    if seeds < 2:
        return Uncertainty(0.0, 0, of_each, texts - 1)
    of_mean = float((drawn.mean(axis=0) ** 2).sum()) / max(draws.shape[1] - 1, 1) * texts / max(texts - 1, 1)
    of_seeds = float(np.var(scores, ddof=1)) / seeds
    shared = (of_mean * seeds - of_each) / (seeds - 1)
    # V is at least that of S times as many independent answers, of_each / S. With few seeds both estimates can be near
    # 0 at once; what lies below half of that is chance.
    return Uncertainty(of_seeds, seeds - 1, max(shared, of_each / seeds / 2.0 - of_seeds, 0.0), texts - 1)


def score_interval(mean: float, known: Uncertainty, metric: str, texts: int) -> Interval | None:
    """Returns the 95 % interval of a configuration's mean score, within the metric's range; None for some metrics.

    The expected calibration error of a sample is larger than the true one by its nature, and no interval around it
    covers that.

    Where every draw of every seed scores 1, or 0, the draws know nothing of a variance: the interval of a share of as
    many texts stands for it.

    A share of texts has Wilson's interval (1927) with the number of texts that would give the same variance (Korn and
    Graubard, 1998), which neither leaves 0 to 1 nor shrinks to a point where every text is right.
    """
    if metric in WITHOUT_INTERVAL:
        return None
    is_extreme = known.deviation <= ROUNDING and mean in (0.0, 1.0) and metric not in (*UNBOUNDED_ABOVE, *LOWER_BOUND)
    if metric in PROPORTIONS or is_extreme:
        return _wilson(mean, known, texts)
    low, high = known.interval(mean)
    ceiling = math.inf if metric in UNBOUNDED_ABOVE else 1.0
    return max(low, LOWER_BOUND.get(metric, 0.0)), min(high, ceiling)


def difference_interval(difference: float, known: Uncertainty, metric: str, tail: float = 1.0 - CONFIDENCE) -> Interval:
    """Returns the interval of a difference of two scores, within what the metric's range allows."""
    low, high = known.interval(difference, tail)
    widest = math.inf if metric in UNBOUNDED_ABOVE else 1.0 - LOWER_BOUND.get(metric, 0.0)
    return max(low, -widest), min(high, widest)


def _wilson(share: float, known: Uncertainty, texts: int) -> Interval:
    variance = known.seeds + known.texts
    effective = share * (1.0 - share) / variance if variance > ROUNDING**2 else float(texts)
    quantile = known.quantile(1.0 - CONFIDENCE) or Uncertainty(0.0, 0, 1.0, texts - 1).quantile(1.0 - CONFIDENCE)
    weight = quantile**2 / effective
    centre = (share + weight / 2.0) / (1.0 + weight)
    half = quantile / (1.0 + weight) * math.sqrt(share * (1.0 - share) / effective + weight / (4.0 * effective))
    return max(centre - half, 0.0), min(centre + half, 1.0)
