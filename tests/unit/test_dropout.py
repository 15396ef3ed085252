"""Dropout masks: the right rate, independent streams, and the same again for the same key."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import chi2

from fleetune.engine.dropout import Stream, keep_mask, stream_key
from fleetune.engine.kernels import masks
from fleetune.engine.kernels.attention import NO_WINDOW, ROW_BITS, attend

WIDTH = 1000


def mask(
    seed: int, step: int = 0, micro: int = 0, place: str = "", call: int = 0, rate: float = 0.1, size: int = 10**6
) -> torch.Tensor:
    key = stream_key(Stream(seed, step, micro), place, call)
    return keep_mask(key, torch.arange(size // WIDTH), WIDTH, rate, torch.float64)


@pytest.mark.parametrize("rate", [0.01, 0.1, 0.5])
def test_rate(rate: float) -> None:
    dropped = int((mask(7, rate=rate, size=10**7) == 0).sum())
    expected = rate * 10**7
    statistic = (dropped - expected) ** 2 / (expected * (1 - rate))
    assert statistic < chi2.ppf(0.999, df=1)


def test_expectation_is_one() -> None:
    values = mask(8, rate=0.3).unique()
    assert values.tolist() == [0.0, pytest.approx(1 / (1 - round(0.3 * 65536) / 65536))]


@pytest.mark.parametrize(
    "other",
    [(1, 0, 0, "site", 0), (0, 1, 0, "site", 0), (0, 0, 1, "site", 0), (0, 0, 0, "other", 0), (0, 0, 0, "site", 1)],
)
def test_streams_are_independent(other: tuple[Any, ...]) -> None:
    a, b = mask(0, 0, 0, "site", 0) == 0, mask(*other) == 0
    both, size = int((a & b).sum()), a.numel()
    expected = float(a.double().mean() * b.double().mean() * size)
    assert abs(both - expected) < 4 * expected**0.5


def test_a_stream_can_be_taken_up_again() -> None:
    assert torch.equal(mask(3, 14, 0, "site", 0), mask(3, 14, 0, "site", 0))


def test_a_key_is_more_than_its_digits() -> None:
    assert not torch.equal(mask(1, 11), mask(11, 1))


@pytest.mark.parametrize("width", [1, 3, 8, 33])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_compiled_masks_are_those_of_torch(width: int, dtype: torch.dtype) -> None:
    rows = torch.tensor([0, 5, 1 << 20, (77 << 20) + 3])
    key = stream_key(Stream(1, 2, 3), "site")
    keep = masks.torch_words(key, rows, width) >= round(0.25 * 65536)
    torch.testing.assert_close(keep_mask(key, rows, width, 0.25, dtype), (keep / 0.75).to(dtype))


def test_attention_drops_what_torch_says() -> None:
    length, heads, text, dropped = 21, 3, 7, 1 << 14
    key = stream_key(Stream(1, 2, 3), "site")
    # With equal scores and the identity as values, the result is the mask.
    scores, values = np.zeros((length, heads, 24), np.float32), np.zeros((length, heads, 24), np.float32)
    values[:, :, :length] = np.eye(length, dtype=np.float32)[:, None]
    out, log_sums = np.empty_like(scores), np.empty((length, heads), np.float32)
    start, count = np.zeros(1, np.int64), np.full(1, length)
    attend(
        scores, scores, values, start, count, start, count, np.full(1, text), np.float32(1), False, NO_WINDOW,
        np.full(1, key, np.uint64), np.full(1, dropped, np.int32), np.ones(1, np.float32), out, log_sums,
    )  # fmt: skip
    rows = (text * heads + torch.arange(heads) << ROW_BITS) + torch.arange(length)[:, None]
    expected = masks.torch_words(key, rows, length) >= dropped
    assert torch.equal(torch.from_numpy(out[..., :length]) > 0, expected)


def test_a_part_of_a_mask_is_that_part() -> None:
    whole, rows = mask(4, size=40 * WIDTH), torch.arange(10, 20)
    assert torch.equal(keep_mask(stream_key(Stream(4, 0, 0), ""), rows, WIDTH, 0.1, torch.float64), whole[10:20])
