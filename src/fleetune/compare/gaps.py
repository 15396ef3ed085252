"""How far a configuration's score lies from another, on the same texts drawn anew.

The intervals are about the choice of texts, given these trained classifiers; other seeds would add to them.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fleetune.compare.intervals import CONFIDENCE
from fleetune.compare.resampling import KeptDraws, kept_draws, score_of
from fleetune.compare.row import Row, scored_trials

FloatArray = NDArray[np.float64]

DRAWS = 500
FEWER_DRAWS = 150
"""For the area under the ROC curve, which sorts, and would take a minute where other metrics take seconds."""


@dataclass(frozen=True)
class Scores:
    """One row's scores on some texts.

    Attributes:
        by_seed: One a seed.
        drawn: Their mean on each draw of the texts `(draws,)`; nan where a draw has none of them.
    """

    by_seed: list[float]
    drawn: FloatArray

    @property
    def mean(self) -> float:
        """Mean over seeds; nan if one of them has no score."""
        return statistics.fmean(self.by_seed)

    @property
    def spread(self) -> float | None:
        """Standard deviation over seeds; None below two."""
        return statistics.stdev(self.by_seed) if len(self.by_seed) > 1 and math.isfinite(self.mean) else None


@dataclass(frozen=True)
class Gap:
    """A difference of two scores.

    Attributes:
        difference: How far the one lies above the other.
        interval: 95 % interval of it; None where it is not defined.
        p_value: Of its being 0, two-sided; 1 where it is not defined.
    """

    difference: float
    interval: tuple[float, float] | None
    p_value: float


def scores_on_parts(
    rows: Sequence[Row], split: str, metric: str, parts: Sequence[NDArray[np.int64] | None]
) -> list[list[Scores]]:
    """Returns for each part of the split (None is the whole) the scores of each row; all see the same draws."""
    texts = len(scored_trials(rows[0].configuration, split)[0].labels(split))
    draws = kept_draws(texts, FEWER_DRAWS if metric == "roc_auc" else DRAWS)
    result = []
    for part in parts:
        own = draws.of(part)
        result.append([_drawn_scores(row, split, metric, part, own) for row in rows])
    return result


def gap_between(scores: Scores, reference: Scores, texts: int) -> Gap:
    """Returns how far `scores` lie from `reference` on the same draws.

    The interval is Student's with the draws' standard deviation, of as many texts as the slice has: percentiles of the
    draws are too short where texts are few.
    """
    from scipy.stats import t

    difference = scores.mean - reference.mean
    drawn = scores.drawn - reference.drawn
    drawn = drawn[np.isfinite(drawn)]
    if not math.isfinite(difference) or len(drawn) < len(scores.drawn) / 2 or texts < 2:
        return Gap(difference, None, 1.0)
    deviation = float(drawn.std(ddof=1)) * math.sqrt(texts / (texts - 1))
    half = float(t.ppf(0.5 + CONFIDENCE / 2, texts - 1)) * deviation
    if deviation == 0.0:
        return Gap(difference, (difference, difference), 1.0)
    p_value = 2.0 * float(t.sf(abs(difference) / deviation, texts - 1))
    return Gap(difference, (difference - half, difference + half), p_value)


def _drawn_scores(row: Row, split: str, metric: str, part: NDArray[np.int64] | None, draws: KeptDraws) -> Scores:
    seeds, drawn = [], []
    # A draw may have none of a small slice's texts, and its score is then none either.
    with np.errstate(invalid="ignore", divide="ignore"):
        for trial in scored_trials(row.configuration, split):
            score = score_of(trial, split, metric, part)
            seeds.append(float(score(np.ones((1, draws.texts)))[0]))
            drawn.append(np.concatenate([score(block) for block in draws]))
    empty = np.concatenate([block.sum(axis=1) == 0 for block in draws])
    return Scores(seeds, np.where(empty, np.nan, np.mean(drawn, axis=0)))
