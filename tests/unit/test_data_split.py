"""Samples and splits."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fleetune.data.config import SplitConfig
from fleetune.data.split import draw, split_texts

QUICK = settings(max_examples=150, derandomize=True, deadline=None, database=None)


def alone(number):
    return np.arange(number, dtype=np.int64)


def labels_of(*counts):
    return np.random.default_rng(0).permutation(np.repeat(np.arange(len(counts)), counts)).astype(np.int64)


def test_each_split_has_the_shares_of_the_labels():
    labels = labels_of(700, 200, 100)
    parts = split_texts(labels, alone(1000), SplitConfig(validation=0.1, test=0.2))
    assert np.bincount(labels[parts["validation"]]).tolist() == [70, 20, 10]
    assert np.bincount(labels[parts["test"]]).tolist() == [140, 40, 20]


def test_the_seed_decides_and_nothing_else():
    labels = labels_of(50, 50)
    first, again, other = (
        split_texts(labels, alone(100), SplitConfig(seed=seed))["test"].tolist() for seed in (0, 0, 1)
    )
    assert first == again
    assert first != other


def test_a_class_of_three_stands_in_each_split_and_a_class_of_one_trains():
    labels = labels_of(100, 3, 1)
    parts = split_texts(labels, alone(104), SplitConfig())
    assert [np.bincount(labels[parts[name]], minlength=3)[1:].tolist() for name in parts] == [[1, 1], [1, 0], [1, 0]]
    assert sum(map(len, parts.values())) == 104


def test_sizes_do_not_grow_for_small_classes():
    labels = labels_of(*[5] * 100)
    parts = split_texts(labels, alone(500), SplitConfig())
    assert [len(parts[name]) for name in ("train", "validation", "test")] == [400, 50, 50]


@QUICK
@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 25)), min_size=1, max_size=60),
    st.sampled_from([0.0, 0.1, 0.3, 0.45]),
    st.sampled_from([0.0, 0.1, 0.3, 0.45]),
    st.booleans(),
    st.booleans(),
)
def test_every_text_is_in_one_split_and_duplicates_together(rows, validation, test, stratify, multi_label):
    classes = np.array([label for label, _ in rows], dtype=np.int64)
    _, groups = np.unique([group for _, group in rows], return_inverse=True)
    labels = np.stack([classes & 1, classes >> 1], axis=1).astype(np.uint8) if multi_label else classes
    config = SplitConfig(validation=validation, test=test, stratify=stratify)
    parts = split_texts(labels, groups.astype(np.int64), config)
    assert sorted(np.concatenate(list(parts.values())).tolist()) == list(range(len(rows)))
    side = np.empty(len(rows), dtype=np.int64)
    for number, indices in enumerate(parts.values()):
        assert (np.diff(indices) > 0).all()
        side[indices] = number
    for group in range(groups.max() + 1):
        assert len(set(side[groups == group].tolist())) == 1
    trained = labels[parts["train"]]
    if multi_label:
        assert (trained.any(axis=0) == labels.any(axis=0)).all()
    else:
        assert set(trained.tolist()) == set(classes.tolist())


def test_many_labels_a_text_are_dealt_out_evenly():
    random = np.random.default_rng(0)
    labels = (random.random((2000, 6)) < [0.5, 0.3, 0.2, 0.1, 0.05, 0.02]).astype(np.uint8)
    parts = split_texts(labels, alone(2000), SplitConfig(validation=0.1, test=0.2))
    for part, share in ((parts["validation"], 0.1), (parts["test"], 0.2)):
        assert len(part) == pytest.approx(share * 2000, abs=20)
        assert labels[part].sum(axis=0) == pytest.approx(share * labels.sum(axis=0), abs=2.5)


def test_without_stratification_the_sizes_still_hold():
    parts = split_texts(labels_of(60, 40), alone(100), SplitConfig(stratify=False))
    assert [len(parts[name]) for name in ("train", "validation", "test")] == [80, 10, 10]


@pytest.mark.parametrize("number", [1, 10, 99, 100, 500])
def test_a_sample_has_its_size_and_the_shares_of_the_labels(number):
    labels = labels_of(60, 30, 10)
    chosen = draw(labels, number, seed=0)
    assert len(chosen) == min(number, 100)
    assert len(set(chosen.tolist())) == len(chosen)
    if number == 10:
        assert np.bincount(labels[chosen]).tolist() == [6, 3, 1]
    assert draw(labels, number, seed=0).tolist() == chosen.tolist()


def test_a_small_sample_keeps_every_class():
    assert set(labels_of(1000, 3, 2)[draw(labels_of(1000, 3, 2), 10, seed=0)].tolist()) == {0, 1, 2}


def test_a_multi_label_sample_has_its_size():
    labels = (np.random.default_rng(0).random((300, 4)) < 0.3).astype(np.uint8)
    chosen = draw(labels, 100, seed=0)
    assert len(chosen) == 100
    assert labels[chosen].sum(axis=0) == pytest.approx(labels.sum(axis=0) / 3, abs=2)
