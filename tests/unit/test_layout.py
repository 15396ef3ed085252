"""The pack: every token once, in its own text."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from fleetune.engine.layout import bucket_width, pack_texts
from tests.tiny import random_tokens


@given(st.integers(1, 4096))
def test_buckets_waste_at_most_a_third_and_little_for_long_texts(length: int) -> None:
    width = bucket_width(length)
    assert length <= width
    assert width - length < max(4, length / 3)


@given(st.lists(st.lists(st.integers(0, 29), min_size=1, max_size=6), min_size=1, max_size=4), st.integers(0, 5))
def test_buckets_hold_every_token_once(batches: list[list[int]], seed: int) -> None:
    tokens = random_tokens(30, seed, longest=40)
    pack = pack_texts(tokens, [(slot, np.array(texts)) for slot, texts in enumerate(batches)], "packed")
    flat = np.concatenate([bucket.index.flatten().numpy() for bucket in pack.buckets])
    assert pack.unbucket is not None
    assert (flat[pack.unbucket.numpy()] == np.arange(pack.tokens)).all()
    order = [text for texts in batches for text in texts]
    expected = [tokens.input_ids[tokens.offsets[text] : tokens.offsets[text + 1]] for text in order]
    assert (pack.input_ids[0].numpy() == np.concatenate(expected)).all()
    owner = np.repeat(np.arange(len(expected)), [len(ids) for ids in expected])
    for bucket in pack.buckets:
        owners = owner[bucket.index.numpy()]
        assert (owners == owners[:, :1]).all(), "a row of attention reads one text only"


@given(st.lists(st.lists(st.integers(0, 29), min_size=1, max_size=6), min_size=1, max_size=4))
def test_segments_are_the_trials_shares(batches: list[list[int]]) -> None:
    tokens = random_tokens(30)
    pack = pack_texts(tokens, [(slot, np.array(texts)) for slot, texts in enumerate(batches)], "packed")
    assert [len(segment.texts) for segment in pack.segments] == [len(texts) for texts in batches]
    assert [len(segment.tokens) for segment in pack.segments] == [int(tokens.lengths[texts].sum()) for texts in batches]
    for bucket in pack.buckets:
        assert sum(count for _, count in bucket.shares) == len(bucket.index)
