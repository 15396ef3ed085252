"""Decisions as sets of labels, of those trials that have something to say about texts."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fleetune.compare.result import TrialResult
from fleetune.compare.row import Row

BoolArray = NDArray[np.bool_]


def telling_trials(row: Row, split: str) -> list[TrialResult]:
    """Returns the trials of `row` with finite logits on `split` that did learn something."""
    return [one for one in row.configuration.done if one.seed not in row.degenerate and _has_numbers(one, split)]


def check_same_texts(trials: Iterable[TrialResult], split: str) -> None:
    """Does nothing if the predictions of `trials` on `split` stand against the same labels.

    Raises:
        ValueError: If they do not, and so cannot be of the same texts.
    """
    labels = [np.asarray(trial.labels(split)) for trial in trials]
    if any(not np.array_equal(labels[0], other) for other in labels[1:]):
        raise ValueError(f"the configurations' predictions on {split} are not of the same texts")


def mean_of(arrays: Iterable[NDArray[Any]]) -> NDArray[np.float64]:
    """Returns the mean of arrays of one shape, of which it holds one at a time."""
    total: NDArray[np.float64] = np.zeros(())
    number = 0
    for array in arrays:
        total, number = total + array, number + 1
    return np.asarray(total / number)


def as_sets(trial: TrialResult, values: NDArray[Any]) -> BoolArray:
    """Returns labels or decisions of `trial` as whether each text has each label `(texts, num_labels)`.

    Args:
        trial: Whose.
        values: Classes `(texts,)`, or 0/1 `(texts, num_labels)` where multi-label.
    """
    if trial.multi_label:
        return np.asarray(np.asarray(values) == 1)
    return np.asarray(np.asarray(values)[:, None] == np.arange(len(trial.label_names)))


def names_in(trial: TrialResult, chosen: BoolArray) -> tuple[str, ...]:
    """Returns the names of the labels in one set `(num_labels,)`."""
    return tuple(name for name, given in zip(trial.label_names, chosen.tolist(), strict=True) if given)


def _has_numbers(trial: TrialResult, split: str) -> bool:
    labels, logits = trial.predictions.get(split, ((), ()))
    return len(labels) > 0 and bool(np.isfinite(logits).all())
