"""Majority: how often each label occurs in training, whatever the text."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fleetune.data.arrays import GivenTexts
from fleetune.methods.baseline import Baseline, Fitted, Task
from fleetune.methods.registry import register

UNSEEN = 0.5
"""Texts that a label counts at least, so that the log loss of one that training lacks is finite."""


@register("majority", source="no paper; the floor of every comparison")
class Majority(Baseline):
    """Gives each text the frequencies of the labels in training, so the most frequent one is always predicted."""

    is_floor = True

    def fit(self, task: Task) -> Fitted:
        constant = label_frequency_logits(task.labels, task.num_labels)

        def logits(texts: GivenTexts) -> NDArray[np.float64]:
            return np.tile(constant, (len(texts.first), 1))

        return Fitted(logits)


def label_frequency_logits(
    labels: NDArray[np.int64] | NDArray[np.uint8], num_labels: int, weights: NDArray[np.float64] | None = None
) -> NDArray[np.float64]:
    """Returns logits `(num_labels,)` whose probabilities are the labels' frequencies.

    Args:
        labels: `(texts,)` class indices, or 0/1 `(texts, num_labels)` where multi-label.
        num_labels: Number of labels.
        weights: What each text counts `(texts,)`; 1 where absent.
    """
    own = np.ones(len(labels)) if weights is None else weights
    if labels.ndim == 2:
        present = np.clip(own @ labels, UNSEEN, own.sum() - UNSEEN)
        return np.asarray(np.log(present) - np.log(own.sum() - present))
    counts = np.maximum(np.bincount(labels, weights=own, minlength=num_labels), UNSEEN)
    return np.asarray(np.log(counts) - np.log(counts.sum()))
