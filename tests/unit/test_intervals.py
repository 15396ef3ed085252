"""Intervals are as wide as seeds and texts make them, no wider and no narrower."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from fleetune.compare.intervals import Uncertainty, score_interval, uncertainty
from fleetune.compare.resampling import draws_of


def drawn(scores: np.ndarray) -> np.ndarray:
    """Means over texts drawn anew of `(seeds, texts)`."""
    texts = scores.shape[1]
    return np.concatenate([block @ scores.T / texts for block in draws_of(texts)]).T


def known_of(scores: np.ndarray) -> Uncertainty:
    known = uncertainty(scores.mean(axis=1).tolist(), drawn(scores), scores.shape[1])
    assert known is not None
    return known


def test_a_validation_set_of_32_texts_leaves_17_points_on_either_side():
    right = np.array([[1.0] * 19 + [0.0] * 13])
    low, high = score_interval(19 / 32, known_of(right), "accuracy", 32) or (0.0, 0.0)
    assert (high - low) / 2 == pytest.approx(0.17, abs=0.007)
    assert low < 0.5, "it does not even exclude chance"


def test_of_one_seed_the_interval_is_of_the_texts_alone():
    rng = np.random.default_rng(0)
    values = rng.normal(0.7, 0.2, (1, 400))
    known = known_of(values)
    assert known.seeds == 0.0
    assert math.sqrt(known.texts) == pytest.approx(values.std(ddof=1) / 20, rel=0.06)


def test_of_texts_without_a_share_the_interval_is_students_over_seeds():
    means = np.array([0.70, 0.74, 0.81, 0.69])
    scores = np.repeat(means[:, None], 50, axis=1)
    low, high = known_of(scores).interval(float(means.mean()))
    half = stats.t.ppf(0.975, 3) * means.std(ddof=1) / 2
    assert (low, high) == pytest.approx((means.mean() - half, means.mean() + half))
    assert known_of(scores).p_value(float(means.mean())) == pytest.approx(stats.ttest_1samp(means, 0).pvalue)


def test_noise_of_single_texts_counts_once():
    """Where seeds differ by nothing but the noise of single answers, V is that of a mean of all answers."""
    rng = np.random.default_rng(1)
    found = [known_of(rng.normal(0.0, 1.0, (6, 300))) for _ in range(60)]
    # Counting it with seeds and with texts would give 2; a variance cut at 0 gives somewhat more than 1.
    assert 0.9 < 1800 * np.mean([one.seeds + one.texts for one in found]) < 1.35


def test_what_texts_do_to_all_seeds_is_not_lost_by_taking_more_seeds():
    rng = np.random.default_rng(2)
    of_texts = rng.normal(0.0, 1.0, 300)
    known = known_of(np.tile(of_texts, (12, 1)) + rng.normal(0, 0.01, (12, 300)))
    assert known.texts == pytest.approx(1 / 300, rel=0.2)


@pytest.mark.parametrize("metric", ["accuracy", "f1_macro", "roc_auc"])
@pytest.mark.parametrize("right", [0.0, 1.0])
def test_all_right_and_all_wrong_keep_an_interval(right, metric):
    known = known_of(np.full((3, 40), right))
    low, high = score_interval(right, known, metric, 40) or (0.0, 0.0)
    assert 0.05 < high - low < 0.15
    assert 0.0 <= low <= right <= high <= 1.0


def test_intervals_stay_within_the_metric():
    wide = Uncertainty(0.5, 1, 0.0, 99)
    assert score_interval(0.9, wide, "f1_macro", 100) == (0.0, 1.0)
    assert score_interval(0.0, wide, "matthews", 100) == (-1.0, 1.0)
    assert (score_interval(0.9, wide, "log_loss", 100) or (0.0, 0.0))[1] > 1.0
    assert score_interval(0.1, wide, "ece", 100) is None, "a sample's error is too large by its nature"


def test_p_is_the_level_at_which_the_interval_touches_zero():
    known = Uncertainty(0.0004, 4, 0.0003, 199)
    for mean in (0.01, 0.05, 0.12):
        low, high = known.interval(mean, known.p_value(mean))
        assert min(abs(low), abs(high)) == pytest.approx(0.0, abs=1e-9)
    assert known.p_value(0.0) == 1.0
    assert Uncertainty(0.0, 3, 0.0, 9).p_value(0.2) == 0.0


def test_draws_on_which_the_score_is_not_defined_are_left_out():
    rng = np.random.default_rng(6)
    draws = rng.normal(0.8, 0.02, (3, 1000))
    whole = uncertainty([0.8, 0.81, 0.79], draws, 100)
    draws[1, ::10] = np.nan
    part = uncertainty([0.8, 0.81, 0.79], draws, 100)
    assert whole is not None and part is not None
    assert part.texts == pytest.approx(whole.texts, rel=0.5) and math.isfinite(part.deviation)
    draws[:, :600] = np.nan
    assert uncertainty([0.8, 0.81, 0.79], draws, 100) is None


def test_percentiles_over_seeds_would_be_far_too_short():
    """Why the level of the seeds is not drawn: five seeds, drawn with replacement, know too little of their spread."""
    rng = np.random.default_rng(4)
    covered = {"percentile": 0, "ours": 0}
    for _ in range(400):
        means = rng.normal(0.0, 1.0, 5)
        again = means[rng.integers(0, 5, (500, 5))].mean(axis=1)
        low, high = np.percentile(again, [2.5, 97.5])
        covered["percentile"] += bool(low <= 0 <= high)
        low, high = Uncertainty(means.var(ddof=1) / 5, 4, 0.0, 99).interval(float(means.mean()))
        covered["ours"] += bool(low <= 0 <= high)
    assert covered["percentile"] / 400 < 0.90
    assert 0.93 <= covered["ours"] / 400 <= 0.97
