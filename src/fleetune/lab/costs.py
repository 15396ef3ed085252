"""What a trial's training, evaluations and predictions cost in floating-point operations of the plain computation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from fleetune.data.dataset import Dataset, SplitName
from fleetune.data.tokens import Tokens
from fleetune.engine.operations import forward_operations, serving_operations, training_operations
from fleetune.methods.base import BackboneShape, Method
from fleetune.methods.baseline import Baseline


@dataclass(frozen=True)
class TextCosts:
    """What costs hang on beside the method: the backbone's shape and the texts' lengths.

    Attributes:
        shape: Of the backbone.
        tokens: Of each split, as the backbone reads them.
        mean_tokens: Of one text.
    """

    shape: BackboneShape
    tokens: Mapping[SplitName, int]
    mean_tokens: float

    def of_trial(self, method: Method, trained_tokens: int, evaluations: int) -> float | None:
        """Returns the operations of training, of evaluations on validation and of predictions on test.

        Predictions on validation are those of the best evaluation. None for a baseline, which computes otherwise.

        Args:
            method: The trial's.
            trained_tokens: Tokens in its training steps.
            evaluations: How many evaluations it had.
        """
        if isinstance(method, Baseline):
            return None
        read = evaluations * self.tokens["validation"] + self.tokens["test"]
        return trained_tokens * training_operations(self.shape, method) + read * forward_operations(self.shape)

    def of_serving(self, method: Method) -> float | None:
        """Returns the operations of predicting one text of mean length; None for a baseline."""
        return None if isinstance(method, Baseline) else serving_operations(self.shape, method, self.mean_tokens)


def costs_of(shape: BackboneShape, dataset: Dataset, tokens: Tokens) -> TextCosts:
    """Returns what trials on `dataset` over a backbone of this shape cost."""
    by_split = {split: int(tokens.lengths[rows].sum()) for split, rows in dataset.splits.items()}
    return TextCosts(shape, by_split, float(np.mean(tokens.lengths)) if len(tokens) else 0.0)
