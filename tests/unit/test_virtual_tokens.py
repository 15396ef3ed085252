"""Virtual tokens stand in every text of their trial, at the same place in both layouts, and nowhere else."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fleetune.engine.architecture import architecture_of
from fleetune.engine.head import pool
from fleetune.engine.layout import pack_texts
from fleetune.engine.virtual import with_prefixes, with_virtual_tokens
from tests.tiny import random_tokens

TOKENS = random_tokens(30, longest=12)
BATCHES = st.lists(st.lists(st.integers(0, 29), min_size=1, max_size=5), min_size=1, max_size=4)


def expected_text(text: int, count: int, after: int) -> tuple[list[int], list[int]]:
    """Returns a text's ids, 0 at virtual tokens, and which virtual token stands where."""
    own = TOKENS.input_ids[TOKENS.offsets[text] : TOKENS.offsets[text + 1]].tolist()
    return [*own[:after], *[0] * count, *own[after:]], [*[-1] * after, *range(count), *[-1] * len(own[after:])]


@given(BATCHES, st.lists(st.integers(0, 7), min_size=4, max_size=4), st.integers(0, 1), st.sampled_from([1, 32]))
def test_a_packed_pack(batches: list[list[int]], counts: list[int], after: int, multiple: int) -> None:
    plain = pack_texts(
        TOKENS, [(slot, np.array(texts)) for slot, texts in enumerate(batches)], "packed", multiple=multiple
    )
    pack = with_virtual_tokens(plain, dict(enumerate(counts)), after, multiple)
    if not any(counts[: len(batches)]):
        assert pack is plain
        return
    assert pack.virtual is not None
    start, number = 0, 0
    for segment, texts in zip(pack.segments, batches, strict=True):
        assert segment.tokens.start == start
        for text in texts:
            ids, virtual = expected_text(text, counts[segment.slot], after)
            place = slice(start, start + len(ids))
            is_own = np.array(virtual) < 0
            assert pack.virtual[0, place].tolist() == virtual
            np.testing.assert_array_equal(pack.input_ids[0, place].numpy()[is_own], np.array(ids)[is_own])
            assert pack.positions[0, place].tolist() == list(range(len(ids)))
            assert (int(pack.starts[number]), int(pack.lengths[number])) == (start, len(ids))
            start, number = place.stop, number + 1
    assert pack.real_tokens == start
    assert pack.tokens == pack.input_ids.shape[1] == -(-start // multiple) * multiple
    assert (pack.virtual[0, start:] == -1).all()


@given(st.lists(st.integers(0, 29), min_size=1, max_size=5), st.integers(1, 7), st.integers(0, 1))
def test_a_padded_pack(texts: list[int], count: int, after: int) -> None:
    plain = pack_texts(TOKENS, [(3, np.array(texts))], "padded")
    pack = with_virtual_tokens(plain, {3: count, 9: 5}, after, 1)
    assert pack.virtual is not None
    assert pack.attention_mask is not None
    for row, text in enumerate(texts):
        ids, virtual = expected_text(text, count, after)
        is_own = np.array(virtual) < 0
        assert pack.virtual[row, : len(ids)].tolist() == virtual
        np.testing.assert_array_equal(pack.input_ids[row, : len(ids)].numpy()[is_own], np.array(ids)[is_own])
        assert int(pack.attention_mask[row].sum()) == int(pack.lengths[row]) == len(ids)
    assert pack.positions[0].tolist() == list(range(pack.input_ids.shape[1]))


def test_prefixes_shift_positions_of_their_own_texts() -> None:
    pack = pack_texts(TOKENS, [(0, np.array([1, 2])), (1, np.array([3])), (2, np.array([4]))], "packed", multiple=32)
    shift = with_prefixes(pack, {1: 5}).shift
    assert isinstance(shift, torch.Tensor)
    middle = pack.segments[1].tokens
    assert shift.shape == pack.positions.shape
    assert (shift[0, middle.start : middle.stop] == 5).all()
    assert int(shift.sum()) == 5 * len(middle)
    assert with_prefixes(pack, dict.fromkeys(range(3), 4)).shift == 4


@pytest.mark.parametrize("layout", ["packed", "padded"])
@pytest.mark.parametrize("classifier_pooling", ["mean", "cls"])
def test_virtual_tokens_do_not_speak_for_a_text(layout: Any, classifier_pooling: str) -> None:
    texts = np.array([4, 9, 2])
    pack = with_virtual_tokens(pack_texts(TOKENS, [(0, texts)], layout), {0: 3}, 1, 1)
    assert pack.virtual is not None
    hidden = torch.randn(*pack.input_ids.shape, 6, dtype=torch.float64)
    config = SimpleNamespace(classifier_pooling=classifier_pooling)
    got = pool(hidden, pack, architecture_of("modernbert"), config)
    for row, text in enumerate(texts):
        length = int(TOKENS.lengths[text]) + 3
        own = hidden[row, :length] if layout == "padded" else hidden[0, pack.starts[row] : pack.starts[row] + length]
        own = torch.cat([own[:1], own[4:]])
        torch.testing.assert_close(got[row], own.mean(dim=0) if classifier_pooling == "mean" else own[0])
