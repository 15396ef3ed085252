"""What a comparison says is true as often as it promises: false claims, power and coverage in worlds that are known.

The short runs are in `make test`; 2,000 matrices each in `make test-all`. Each says what it found (`pytest -rP`).
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats
from scipy.integrate import quad

from fleetune.compare.intervals import Uncertainty
from fleetune.compare.pair import difference_of
from fleetune.compare.summary import Comparison, compare
from fleetune.compare.tests import sign_flip
from tests.crossed import World

FEW, MANY = 120, 2_000
EIGHT = World([0.0] * 8, seeds=10, texts=100, of_seed=0.4, of_text_and_configuration=0.1)
NULLS = {
    "two, six seeds": World([0.0] * 2, seeds=6),
    "two, ten seeds that differ": World([0.0] * 2, seeds=10, of_seed=0.3),
    "two, seeds alike": World([0.0] * 2, seeds=6, of_seed=0.0),
    "four, eight seeds": World([0.0] * 4, seeds=8, texts=100),
    "six, two seeds": World([0.0] * 6, seeds=2, texts=100),
    # Validation chooses the luckiest of eight, and the same seeds are lucky on test: all pairs are corrected for.
    "eight, one chosen for its seeds": EIGHT,
}
SOURCES = {
    "as usual": World([0.0, 0.15, 0.3]),
    "seeds alike": World([0.0, 0.15, 0.3], of_seed=0.0),
    "seeds that differ": World([0.0, 0.15, 0.3], of_seed=0.3),
    "few texts": World([0.0, 0.15, 0.3], texts=32),
    "nearly all right": World([0.0, 0.15, 0.3], mean=2.2),
}
WORLDS = {
    f"{seeds} seeds, {name}": replace(world, seeds=seeds) for seeds in (2, 3, 5, 8) for name, world in SOURCES.items()
}


def comparisons(world: World, times: int) -> list[Comparison]:
    return [compare(world.trials(np.random.default_rng([11, index]))) for index in range(times)]


def simulation_error(share: float, times: int) -> float:
    """Returns what a share that is right is exceeded by once in a thousand simulations."""
    return 3.1 * math.sqrt(share * (1 - share) / times)


def check_false_claims(world: World, times: int) -> None:
    found = comparisons(world, times)
    claimed = sum(
        any(test.is_significant for test in one.tests)
        or one.verdict.winner is not None
        or any("is better than" in claim.text for claim in one.claims)
        for one in found
    )
    set_apart = sum(any(row.standing in ("behind", "ahead") for row in one.rows) for one in found)
    print(f"{times} times: a false claim in {claimed / times:.1%}, a row set apart in {set_apart / times:.1%}")
    assert claimed / times <= 0.05 + simulation_error(0.05, times)
    assert set_apart / times <= 0.05 + simulation_error(0.05, times)
    if world.seeds < 6:
        assert claimed == 0


def check_coverage(world: World, times: int) -> None:
    covered, pairs, rows = 0, 0, 0
    missed, claimed = [], []
    for one in comparisons(world, times):
        truth = {row.name: world.accuracy(place) for place, row in enumerate(one.rows)}
        for row in one.rows:
            assert row.interval is not None
            rows += row.interval[0] <= truth[row.name] <= row.interval[1]
        for test in one.tests:
            assert test.interval is not None
            covered += test.interval[0] <= truth[test.a] - truth[test.b] <= test.interval[1]
            pairs += 1
            found = difference_of(one.row(test.a), one.row(test.b))
            assert found is not None
            missed.append(test.difference - (truth[test.a] - truth[test.b]))
            claimed.append(found.known.deviation)
    rows_share, pairs_share = rows / (times * len(world.shifts)), covered / pairs
    print(f"{times} times: {rows_share:.1%} of means and {pairs_share:.1%} of differences are covered")
    # A width that is wrong by a quarter shows here long before it shows in how often the truth is covered.
    assert np.sqrt(np.mean(np.square(claimed)) / np.mean(np.square(missed))) == pytest.approx(1.0, abs=0.2)
    # Rows and pairs of one matrix hang together, so that the error is that of `times`, not of their number.
    error = 2.4 * math.sqrt(0.95 * 0.05 / times)
    highest = 0.97 if world.seeds > 3 else 0.98
    assert 0.93 - error <= rows_share <= highest + error
    assert 0.93 - error <= pairs_share <= highest + error


@pytest.mark.parametrize("name", [name for name, world in NULLS.items() if world is not EIGHT])
def test_where_nothing_differs_hardly_anything_is_claimed(name):
    check_false_claims(NULLS[name], FEW)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("world", NULLS.values(), ids=NULLS)
def test_of_2000_null_matrices_hardly_any_gives_a_claim(world):
    check_false_claims(world, MANY)


@pytest.mark.parametrize("name", ["2 seeds, as usual", "5 seeds, seeds that differ", "8 seeds, few texts"])
def test_intervals_cover_the_truth(name):
    check_coverage(WORLDS[name], FEW)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("world", WORLDS.values(), ids=WORLDS)
def test_of_2000_intervals_as_many_cover_the_truth_as_is_said(world):
    check_coverage(world, MANY)


def test_sign_flips_have_the_power_that_theory_gives():
    """Of six seeds all must have one sign: the power follows from the normal distribution."""
    rng, times = np.random.default_rng(8), 4_000
    for effect in (0.0, 0.5, 1.0, 2.0):
        found = np.mean([sign_flip(one) < 0.05 for one in rng.normal(effect, 1.0, (times, 6)).tolist()])
        theory = stats.norm.cdf(effect) ** 6 + stats.norm.cdf(-effect) ** 6
        assert found == pytest.approx(theory, abs=simulation_error(theory, times) + 1e-3)


def test_the_test_over_seeds_and_texts_has_the_power_that_theory_gives():
    """Where one source has all the variance it is the t-test, whose power is the noncentral t distribution's."""
    rng, times, seeds = np.random.default_rng(9), 2_000, 8
    for effect in (0.5, 1.0, 1.5):
        rejected = 0
        for one in rng.normal(effect, 1.0, (times, seeds)):
            known = Uncertainty(float(one.var(ddof=1)) / seeds, seeds - 1, 0.0, 199)
            low, high = known.interval(float(one.mean()))
            rejected += not low <= 0.0 <= high
        limit = stats.t.ppf(0.975, seeds - 1)
        away = effect * math.sqrt(seeds)
        theory = stats.nct.sf(limit, seeds - 1, away) + stats.nct.cdf(-limit, seeds - 1, away)
        assert rejected / times == pytest.approx(theory, abs=simulation_error(theory, times))


def check_power(world: World, times: int) -> None:
    found = comparisons(world, times)
    power = np.mean([any(test.is_significant for test in one.tests) for one in found])
    expected = theoretical_power(world)
    print(f"{times} times: found in {power:.1%}, {expected:.1%} by theory")
    assert power == pytest.approx(expected, abs=simulation_error(expected, times) + 0.05)


def theoretical_power(world: World) -> float:
    """Returns the probability that all six seeds have the better sign: with one pair, what significance takes.

    A seed's difference is normal around the true one; what texts bring is common to all its seeds. The variances are
    those of differences of two shares, from one long simulation of the world's first two moments.
    """
    rng = np.random.default_rng(99)
    long = World(world.shifts, world.seeds, 200_000, world.of_text, world.of_seed,
                 world.of_text_and_configuration, world.of_noise, world.mean)  # fmt: skip
    right = long.right(rng, np.zeros((2, world.seeds)), long.texts).astype(np.float64)
    differences = right[1] - right[0]
    common = np.cov(differences)[np.triu_indices(world.seeds, 1)].mean() / world.texts
    own = differences.var(axis=1).mean() / world.texts - common
    slope = [stats.norm.pdf((world.mean + shift) / long.deviation()) / long.deviation() for shift in world.shifts]
    own += sum((one * world.of_seed) ** 2 for one in slope)
    effect = world.accuracy(1) - world.accuracy(0)
    deviation = math.sqrt(common)

    def given(of_texts: float) -> float:
        towards = stats.norm.cdf((effect + of_texts) / math.sqrt(own)) ** world.seeds
        return float(towards * stats.norm.pdf(of_texts, scale=deviation))

    return float(quad(given, -6 * deviation, 6 * deviation)[0])


PLANTED = World([0.0, 0.35], seeds=6, texts=300, of_seed=0.15, of_text_and_configuration=0.2)


def test_a_planted_effect_is_found_as_often_as_theory_says():
    check_power(PLANTED, FEW)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_of_2000_planted_effects_as_many_are_found_as_theory_says():
    check_power(PLANTED, MANY)
