"""Paired tests give the p-values of their textbooks, and of the programs the field uses."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from fleetune.compare.tests import SIGNIFICANT, holm, mcnemar, seeds_needed, sign_flip


@given(st.lists(st.integers(-20, 20), min_size=1, max_size=9))
def test_sign_flips_are_all_counted(values):
    sums = [abs(sum(sign * value for sign, value in zip(signs, values, strict=True)))
            for signs in product((1, -1), repeat=len(values))]  # fmt: skip
    wanted = np.mean([found >= abs(sum(values)) for found in sums])
    assert sign_flip([value / 7 for value in values]) == pytest.approx(wanted)


def test_sign_flips_are_scipys_permutation_test():
    values = np.random.default_rng(3).normal(0.4, 1, 11)
    wanted = stats.permutation_test(
        (values,), lambda one: float(np.mean(one)), permutation_type="samples", n_resamples=2**11, vectorized=False
    ).pvalue
    assert sign_flip(values.tolist()) == pytest.approx(wanted)


def test_many_seeds_are_drawn_and_come_near_the_exact_value():
    values = np.random.default_rng(5).normal(0.3, 1, 30)
    assert sign_flip(values.tolist()) == pytest.approx(stats.ttest_1samp(values, 0).pvalue, abs=0.02)


@pytest.mark.parametrize("seeds", range(1, 6))
def test_fewer_than_six_seeds_are_never_significant(seeds):
    assert sign_flip([0.5] * seeds) == pytest.approx(2.0 / 2**seeds)
    assert sign_flip([0.5] * seeds) >= SIGNIFICANT


def test_six_seeds_of_one_sign_are_just_enough_for_one_pair():
    assert sign_flip([0.1, 0.2, 0.1, 0.3, 0.1, 0.2]) == pytest.approx(2 / 64)
    assert seeds_needed(1) == 6


@given(st.integers(1, 3_000))
def test_the_seeds_that_are_said_to_suffice_do_and_one_less_does_not(tests):
    needed = seeds_needed(tests)
    assert tests * 2.0 / 2**needed < SIGNIFICANT <= tests * 2.0 / 2 ** (needed - 1)


def test_no_difference_is_no_evidence():
    assert sign_flip([0.0, 0.0, 0.0]) == 1.0
    same = np.array([[True, False, True]])
    assert mcnemar(same, same) == 1.0


def test_mcnemar_is_the_exact_binomial_test_of_the_discordant_texts():
    a = np.array([[True] * 12 + [False] * 3 + [True] * 20])
    b = np.array([[False] * 12 + [True] * 3 + [True] * 20])
    assert mcnemar(a, b) == pytest.approx(stats.binomtest(12, 15).pvalue)


def test_seeds_of_one_text_are_no_independent_texts():
    a, b = np.array([[True] * 12 + [False] * 3]), np.array([[False] * 12 + [True] * 3])
    ten = mcnemar(np.repeat(a, 10, axis=0), np.repeat(b, 10, axis=0))
    assert ten == pytest.approx(2 * stats.norm.sf(9 / np.sqrt(15)))
    assert ten > 1e-3, "150 texts would have given 1e-12"


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holms_correction_is_that_of_his_paper(values):
    adjusted = holm(values)
    order = np.argsort(values, kind="stable")
    # Rejecting step by step, as long as p <= level / (tests left), is what adjusted values must reproduce.
    for level in (0.01, 0.05, 0.2, 0.6):
        rejected = set()
        for rank, place in enumerate(order):
            if values[place] * (len(values) - rank) > level:
                break
            rejected.add(int(place))
        assert {place for place, value in enumerate(adjusted) if value <= level} == rejected
    assert all(value >= before for value, before in zip(adjusted, values, strict=True))


@given(st.lists(st.floats(0, 1), min_size=2, max_size=12), st.data())
def test_of_some_of_the_tests_no_more_is_rejected_than_of_all(values, data):
    """The others need not be known: whatever they are, what is adjusted for their number is no smaller."""
    kept = data.draw(st.lists(st.integers(0, len(values) - 1), min_size=1, unique=True))
    everything = holm(values)
    some = holm([values[place] for place in kept], len(values))
    assert all(one >= everything[place] - 1e-12 for one, place in zip(some, kept, strict=True))


def test_a_family_is_corrected_for_in_full():
    assert holm([0.01, 0.02], 6) == pytest.approx([0.06, 0.10])
    assert holm([0.01, 0.02], 1) == holm([0.01, 0.02]) == pytest.approx([0.02, 0.02])
    assert holm([], 3) == []
