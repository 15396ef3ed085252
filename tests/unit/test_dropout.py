"""Dropout masks: the right rate, independent streams, and the same again for the same key."""

from __future__ import annotations

import pytest
import torch
from scipy.stats import chi2

from fleetune.engine.dropout import keep_mask
from fleetune.runtime import random_words


def mask(*key: int | str, rate: float = 0.1, size: int = 1 << 20) -> torch.Tensor:
    return keep_mask(random_words(*key), (size,), rate, torch.float64)


@pytest.mark.parametrize("rate", [0.01, 0.1, 0.5])
def test_rate(rate: float) -> None:
    dropped = int((mask("rate", rate=rate, size=10**7) == 0).sum())
    expected = rate * 10**7
    statistic = (dropped - expected) ** 2 / (expected * (1 - rate))
    assert statistic < chi2.ppf(0.999, df=1)


def test_expectation_is_one() -> None:
    values = mask("mean", rate=0.3).unique()
    assert values.tolist() == [0.0, pytest.approx(1 / (1 - round(0.3 * 65536) / 65536))]


@pytest.mark.parametrize(
    "other",
    [(1, 0, 0, "site", 0), (0, 1, 0, "site", 0), (0, 0, 1, "site", 0), (0, 0, 0, "other", 0), (0, 0, 0, "site", 1)],
)
def test_streams_are_independent(other: tuple[int | str, ...]) -> None:
    a, b = mask(0, 0, 0, "site", 0) == 0, mask(*other) == 0
    both, size = int((a & b).sum()), a.numel()
    expected = float(a.double().mean() * b.double().mean() * size)
    assert abs(both - expected) < 4 * expected**0.5


def test_a_stream_can_be_taken_up_again() -> None:
    assert torch.equal(mask(3, 14, 0, "site", 0), mask(3, 14, 0, "site", 0))


def test_a_key_is_more_than_its_letters() -> None:
    assert not torch.equal(mask(1, 11), mask(11, 1))
