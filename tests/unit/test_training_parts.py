"""Learning curves over data size: parts of the training texts, one inside the other, each with every label."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from fleetune.data.config import DataConfig
from fleetune.data.curve import thinned
from fleetune.data.dataset import Dataset
from fleetune.data.prepare import prepare
from fleetune.data.split import nested_subset
from fleetune.errors import DataError

CLASSES = st.lists(st.integers(0, 4), min_size=2, max_size=120).map(np.array)
SETS = st.integers(2, 120).flatmap(
    lambda texts: st.integers(0, 2**32 - 1).map(
        lambda seed: (np.random.default_rng(seed).random((texts, 4)) < [0.5, 0.3, 0.1, 0.02]).astype(np.uint8)
    )
)


def written(folder: Path, counts: dict[str, int], **settings: Any) -> DataConfig:
    rows = [f"text {label} {n},{label}" for label, count in counts.items() for n in range(count)]
    (folder / "file.csv").write_text("\n".join(["text,label", *rows]) + "\n")
    return DataConfig.model_validate({"path": "file.csv", **settings})


@given(CLASSES | SETS, st.integers(0, 3), st.data())
def test_a_smaller_part_lies_in_every_larger_one(labels: Any, seed: int, data: Any) -> None:
    smaller = data.draw(st.integers(1, len(labels)))
    larger = data.draw(st.integers(smaller, len(labels)))
    few, many = (nested_subset(labels, number, seed) for number in (smaller, larger))
    assert len(few) == smaller and len(many) == larger
    assert set(few.tolist()) <= set(many.tolist()) <= set(range(len(labels)))
    assert (np.diff(many) > 0).all() and many.dtype == np.int64
    assert (nested_subset(labels, larger, seed) == many).all()


@given(CLASSES, st.integers(0, 3), st.floats(0.05, 1.0))
def test_a_part_has_the_shares_of_the_labels_and_none_is_missing(labels: Any, seed: int, share: float) -> None:
    number = round(share * len(labels))
    counts = np.bincount(labels)
    assume(number >= (counts > 0).sum())
    got = np.bincount(labels[nested_subset(labels, number, seed)], minlength=len(counts))
    assert (got[counts > 0] > 0).all()
    # Each label's first text comes before all others, at the cost of one of each of the other labels.
    assert (np.abs(got - share * counts) <= 1 + len(counts)).all()


def test_large_parts_are_stratified_closely_with_one_label_or_several() -> None:
    rng = np.random.default_rng(0)
    classes = rng.choice(4, 1000, p=[0.6, 0.3, 0.08, 0.02])
    sets = (rng.random((1000, 4)) < [0.5, 0.3, 0.1, 0.03]).astype(np.uint8)
    for share in (0.1, 0.3, 0.5, 0.77):
        number = round(1000 * share)
        got = np.bincount(classes[nested_subset(classes, number, 0)], minlength=4)
        assert (np.abs(got - share * np.bincount(classes)) <= 1).all()
        several = sets[nested_subset(sets, number, 0)].sum(axis=0)
        assert (np.abs(several - share * sets.sum(axis=0)) <= 4).all()


def test_other_seeds_draw_other_texts() -> None:
    classes = np.arange(200) % 2
    assert (nested_subset(classes, 50, 0) != nested_subset(classes, 50, 1)).any()


def test_only_training_is_thinned(tmp_path: Path) -> None:
    whole = prepare(written(tmp_path, {"a": 60, "b": 30}), tmp_path).dataset
    part = thinned(whole, 0.25, 0)
    assert len(part.splits["train"]) == round(0.25 * len(whole.splits["train"]))
    assert set(part.splits["train"].tolist()) < set(whole.splits["train"].tolist())
    for split in ("validation", "test"):
        assert part.splits[split] is whole.splits[split]
    assert part.texts is whole.texts and thinned(whole, 1.0, 0) is whole
    assert labels_of(part) == {"a": 12, "b": 6}


def labels_of(dataset: Dataset) -> dict[str, int]:
    counts = np.bincount(dataset.labels[dataset.splits["train"]], minlength=dataset.num_labels)
    return dict(zip(dataset.label_names, counts.tolist(), strict=True))


def test_a_share_without_a_text_of_some_label_is_refused(tmp_path: Path) -> None:
    counts = {"a": 40, "b": 40, "rare": 3}
    config = written(tmp_path, counts, curve=[0.02, 0.5])
    with pytest.raises(DataError, match=r"curve: 0\.02 of the 67 training texts is 1, without any of the label '"):
        prepare(config, tmp_path)
    with pytest.raises(DataError, match="two shares of the 67 training texts are the same 7"):
        prepare(written(tmp_path, counts, curve=[0.1, 0.105]), tmp_path)
    assert prepare(written(tmp_path, counts, curve=[0.05, 0.5]), tmp_path).audit.train == 67
