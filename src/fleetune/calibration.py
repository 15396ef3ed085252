"""Temperature: one number that logits are divided by, so that probabilities come nearer to shares of right answers.

Source: Guo et al., 2017, arXiv:1706.04599, section 4.2. It is fitted on validation, and changes no decision: the
largest probability stays the largest, and a threshold moves with the probabilities that it is compared with.

Where validation has no mistake, the log loss alone would run to a temperature of 0, and to probabilities of 0 and 1
from a handful of texts. So a weak prior is added, log T ~ N(0, 1): it counts about as much as one text.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fleetune.metrics import probabilities_of, sigmoid

FloatArray = NDArray[np.float64]

NEUTRAL_TEMPERATURE = 1.0
LOWEST, HIGHEST = 0.05, 20.0
GRID = 25
"""Temperatures that are tried before the best of them is refined."""
CERTAIN = 1e-15
"""No threshold is drawn nearer to 0 or 1, where neighbouring probabilities are the same number."""


def fit_temperature(labels: NDArray[Any], logits: NDArray[Any]) -> float:
    """Returns the temperature in [0.05, 20] of the lowest log loss, by the module's prior; 1.0 where none can be told.

    None can be told from no texts, from logits that are not numbers, or where all labels are the same.

    Args:
        labels: Class indices `(texts,)`, or 0/1 `(texts, num_labels)`; of several labels all share one temperature.
        logits: `(texts, num_labels)`.
    """
    truth, raw = np.asarray(labels), np.asarray(logits, dtype=np.float64)
    if not raw.size or not np.isfinite(raw).all() or (truth == truth.flat[0]).all():
        return NEUTRAL_TEMPERATURE
    from scipy.optimize import minimize_scalar

    log_loss = _log_loss(truth, raw)

    def cost(log_temperature: float) -> float:
        return log_loss(float(np.exp(log_temperature))) + log_temperature**2 / 2.0

    grid = np.linspace(np.log(LOWEST), np.log(HIGHEST), GRID)
    best = int(np.argmin([cost(point) for point in grid]))
    around = float(grid[max(best - 1, 0)]), float(grid[min(best + 1, GRID - 1)])
    found = minimize_scalar(cost, bounds=around, method="bounded", options={"xatol": 1e-6})
    return float(np.clip(np.exp(found.x), LOWEST, HIGHEST))


def _log_loss(truth: NDArray[Any], logits: FloatArray) -> Callable[[float], float]:
    """Returns the negative log likelihood by temperature, summed over texts and, where there are several, labels."""
    if truth.ndim == 2:
        against = np.where(truth == 1, -logits, logits)
        return lambda temperature: float(np.logaddexp(0.0, against / temperature).sum())
    below = logits - logits.max(axis=1, keepdims=True)
    chosen = float(below[np.arange(len(truth)), truth.astype(np.int64)].sum())
    return lambda temperature: float(np.log(np.exp(below / temperature).sum(axis=1)).sum() - chosen / temperature)


def calibrated_probabilities(logits: NDArray[Any], temperature: float, multi_label: bool) -> FloatArray:
    """Returns the probabilities `(texts, num_labels)` of `logits / temperature`, in float64."""
    return probabilities_of(np.asarray(logits, dtype=np.float64) / temperature, multi_label)


def calibrated_thresholds(thresholds: NDArray[Any], temperature: float) -> FloatArray:
    """Returns the thresholds by which calibrated probabilities give the labels that plain ones gave by `thresholds`.

    Log-odds are divided by the temperature. 0 stays 0, and 1 stays 1.
    """
    plain = np.asarray(thresholds, dtype=np.float64)
    if temperature == NEUTRAL_TEMPERATURE:
        return plain
    within = np.clip(plain, CERTAIN, 1.0 - CERTAIN)
    moved = sigmoid(np.log(within / (1.0 - within)) / temperature)
    return np.where((plain <= 0.0) | (plain >= 1.0), plain, moved)
