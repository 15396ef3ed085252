"""The loss of one trial's batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from fleetune.runtime import device

if TYPE_CHECKING:
    from torch import Tensor


def class_weights(
    labels: NDArray[np.int64] | NDArray[np.uint8],
    num_labels: int,
    kind: Literal["none", "balanced"] | Sequence[float],
) -> Tensor | None:
    """Returns `(num_labels,)` weights; None for `none`.

    `balanced`, single-label: texts / (classes · texts of the class), as scikit-learn's `balanced`. Multi-label: the
    ratio of texts without a label to texts with it, by which its positives count. A class that training lacks
    counts 1. Numbers are taken as they are, one a label.
    """
    if kind == "none":
        return None
    if kind != "balanced":
        weights = np.asarray(kind, dtype=np.float64)
    elif labels.ndim == 2:
        positive = labels.sum(axis=0).astype(np.float64)
        weights = np.where(positive > 0, (len(labels) - positive) / np.maximum(positive, 1), 1.0)
    else:
        counts = np.bincount(labels, minlength=num_labels)
        weights = np.where(counts > 0, len(labels) / (num_labels * np.maximum(counts, 1)), 1.0)
    return torch.from_numpy(weights).to(device())


def batch_loss(
    logits: Tensor,
    labels: Tensor,
    step_labels: Tensor,
    weights: Tensor | None = None,
    focal_gamma: float | None = None,
) -> Tensor:
    """Returns these texts' part of the mean loss over the texts of their optimizer step.

    Cross entropy, or binary cross entropy averaged over labels where `labels` is `(texts, num_labels)`. The mean of
    single-label losses with class weights is the weighted one, as torch's. Parts of a step, such as micro-batches
    and what each lane has of them, add up to the loss of the step as one batch.

    Args:
        logits: `(texts, num_labels)`.
        labels: `(texts,)` class indices or `(texts, num_labels)` 0/1.
        step_labels: The same of all texts of the optimizer step.
        weights: From `class_weights`; multi-label, they count the positives alone.
        focal_gamma: Where given each loss is multiplied by (1 − p)^gamma, p being the probability given to the truth:
            focal loss (Lin et al., 2017, arXiv:1708.02002, equations 4 and 5; their α is in the weights).
    """
    weights = None if weights is None else weights.to(logits.dtype)
    if labels.ndim == 2:
        return _binary_losses(logits, labels, weights, focal_gamma).sum() / step_labels.numel()
    labels, step_labels = labels.long(), step_labels.long()
    losses = _losses(logits, labels, focal_gamma)
    if weights is None:
        return losses.sum() / len(step_labels)
    return (weights[labels] * losses).sum() / weights[step_labels].sum()


def _losses(logits: Tensor, labels: Tensor, focal_gamma: float | None) -> Tensor:
    """Returns each text's loss `(texts,)`."""
    if focal_gamma is None:
        return functional.cross_entropy(logits, labels, reduction="none")
    log_probabilities = functional.log_softmax(logits, dim=1)
    true = functional.one_hot(labels, logits.shape[1]).bool()
    # The logarithm of 1 − p, not 1 − p itself, which rounds to 0 where the gradient of a power may be infinite.
    log_rest = torch.logsumexp(log_probabilities.masked_fill(true, -torch.inf), dim=1)
    return -torch.exp(focal_gamma * log_rest) * log_probabilities[true]


def _binary_losses(logits: Tensor, labels: Tensor, weights: Tensor | None, focal_gamma: float | None) -> Tensor:
    """Returns each label's loss `(texts, num_labels)`."""
    targets = labels.to(logits.dtype)
    if focal_gamma is None:
        return functional.binary_cross_entropy_with_logits(logits, targets, pos_weight=weights, reduction="none")
    towards_truth = torch.where(targets > 0, logits, -logits)
    losses = -torch.exp(focal_gamma * functional.logsigmoid(-towards_truth)) * functional.logsigmoid(towards_truth)
    return losses if weights is None else torch.where(targets > 0, weights, 1.0) * losses
