"""What a trial left, held so that many trials fit: logits in their files, losses in arrays."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

Pair = tuple[NDArray[Any], NDArray[np.float32]]
"""Labels and logits of one split."""


class StoredPredictions(Mapping[str, Pair]):
    """Labels and logits by split: labels lie in memory, for trials on the same data once, and logits in a file.

    Args:
        labels: Of each split.
        read: Returns the logits of a split.
    """

    def __init__(self, labels: Mapping[str, NDArray[Any]], read: Callable[[str], NDArray[np.float32]]) -> None:
        self.labels = labels
        self._read = read

    def __getitem__(self, split: str) -> Pair:
        return self.labels[split], self._read(split)

    def __contains__(self, split: object) -> bool:
        return split in self.labels

    def __iter__(self) -> Iterator[str]:
        return iter(self.labels)

    def __len__(self) -> int:
        return len(self.labels)


def labels_of(predictions: Mapping[str, Pair], split: str) -> NDArray[Any]:
    """Returns the labels of a split; none where it was not predicted. No logits are read for it."""
    if split not in predictions:
        return np.empty(0, dtype=np.int64)
    return predictions.labels[split] if isinstance(predictions, StoredPredictions) else predictions[split][0]


class StepLosses(Sequence[tuple[int, float]]):
    """The training losses of a trial as `(step, loss)`, in 16 bytes each.

    Args:
        steps: `(steps,)`.
        losses: `(steps,)`, in nats.
    """

    def __init__(self, steps: NDArray[np.int64], losses: NDArray[np.float64]) -> None:
        self._steps, self._losses = steps, losses

    @overload
    def __getitem__(self, place: int) -> tuple[int, float]: ...

    @overload
    def __getitem__(self, place: slice) -> StepLosses: ...

    def __getitem__(self, place: int | slice) -> tuple[int, float] | StepLosses:
        if isinstance(place, slice):
            return StepLosses(self._steps[place], self._losses[place])
        return int(self._steps[place]), float(self._losses[place])

    def __len__(self) -> int:
        return len(self._steps)
