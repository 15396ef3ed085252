"""The loss of one trial's batch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from fleetune.runtime import device

if TYPE_CHECKING:
    from torch import Tensor


def class_weights(
    labels: NDArray[np.int64] | NDArray[np.uint8], num_labels: int, kind: Literal["none", "balanced"]
) -> Tensor | None:
    """Returns `(num_labels,)` weights; None for `none`.

    Single-label: texts / (classes · texts of the class), as scikit-learn's `balanced`. Multi-label: the ratio of
    texts without a label to texts with it, by which its positives count. A class that training lacks counts 1.
    """
    if kind == "none":
        return None
    if labels.ndim == 2:
        positive = labels.sum(axis=0).astype(np.float64)
        weights = np.where(positive > 0, (len(labels) - positive) / np.maximum(positive, 1), 1.0)
    else:
        counts = np.bincount(labels, minlength=num_labels)
        weights = np.where(counts > 0, len(labels) / (num_labels * np.maximum(counts, 1)), 1.0)
    return torch.from_numpy(weights).to(device())


def batch_loss(
    logits: Tensor, labels: Tensor, weights: Tensor | None, step_texts: int, batch_labels: Tensor | None = None
) -> Tensor:
    """Returns this micro-batch's part of the mean loss over the texts of its optimizer step.

    Cross entropy, or binary cross entropy averaged over labels where `labels` is `(texts, num_labels)`. With class
    weights, single-label losses are averaged by weight within the micro-batch, as torch does.

    Args:
        logits: `(texts, num_labels)`.
        labels: `(texts,)` class indices or `(texts, num_labels)` 0/1.
        weights: From `class_weights`.
        step_texts: Texts of the whole optimizer step.
        batch_labels: Labels of the whole micro-batch, where `logits` are a part of it.
    """
    weights = None if weights is None else weights.to(logits.dtype)
    if labels.ndim == 2:
        targets = labels.to(logits.dtype)
        loss = functional.binary_cross_entropy_with_logits(logits, targets, pos_weight=weights, reduction="sum")
        return loss / (labels.shape[1] * step_texts)
    loss = functional.cross_entropy(logits, labels.long(), weight=weights, reduction="sum")
    if weights is None:
        return loss / step_texts
    whole = labels if batch_labels is None else batch_labels
    return loss * (len(whole) / (step_texts * weights[whole.long()].sum()))
