"""Metrics on texts drawn anew are the metrics of exactly those texts, for every metric there is."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fleetune.compare.resampling import draws_of, resampled, score_of
from fleetune.metrics import available_metrics, evaluate
from tests.unit.synthetic_runs import trial

KINDS = [(2, False), (4, False), (3, True)]
CASES = [(labels, several, name) for labels, several in KINDS for name in sorted(available_metrics(labels, several))]


def drawn(labels: int, several: bool, texts: int, seed: int):
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 2, (texts, labels)).astype(np.uint8) if several else rng.integers(0, labels, texts)
    logits = np.round(rng.normal(size=(texts, labels)) * 2, 1).astype(np.float32)
    made = trial("lora", 0, [f"label {index}" for index in range(labels)], several)
    return replace(made, training={"thresholds": 0.4}, predictions={"test": (truth, logits)})


@pytest.mark.parametrize(("labels", "several", "metric"), CASES)
@settings(max_examples=15, deadline=None)
@given(texts=st.integers(3, 25), seed=st.integers(0, 10_000))
def test_a_draw_scores_as_the_texts_it_has(labels, several, metric, texts, seed):
    one = drawn(labels, several, texts, seed)
    truth, logits = one.predictions["test"]
    counts = np.random.default_rng(seed).multinomial(texts, np.full(texts, 1 / texts), size=3).astype(np.float64)
    found = score_of(one, "test", metric)(counts)
    for row, score in zip(counts.astype(int), found, strict=True):
        chosen = np.repeat(np.arange(texts), row)
        wanted = evaluate(truth[chosen], logits[chosen], one.thresholds("test"))[metric]
        assert score == pytest.approx(wanted, abs=1e-9, nan_ok=True)


def test_trials_see_the_same_draws_and_always_the_same():
    one, other = drawn(3, False, 40, 1), drawn(3, False, 40, 2)
    first = resampled([one, other], "test", "accuracy", 50)
    again = resampled([other], "test", "accuracy", 50)
    assert first.shape == (2, 50)
    assert np.array_equal(first[1], again[0])
    assert all((block.sum(axis=1) == 40).all() for block in draws_of(40, 50))


def test_a_large_split_is_drawn_in_blocks_and_gives_the_same():
    sizes = [block.shape for block in draws_of(30_000, 300)]
    assert len(sizes) > 1 and sum(rows for rows, _ in sizes) == 300
    assert max(rows * texts for rows, texts in sizes) <= 4_000_000


def test_logits_that_are_no_numbers_give_no_score():
    one = drawn(2, False, 10, 0)
    truth, logits = one.predictions["test"]
    logits[3, 1] = np.nan
    broken = replace(one, predictions={"test": (truth, logits)})
    assert np.isnan(resampled([broken], "test", "accuracy", 5)).all()
