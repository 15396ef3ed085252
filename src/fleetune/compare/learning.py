"""Whether a trial was trained at all: a loss that never left chance, or that was still falling at the end."""

from __future__ import annotations

import math
import statistics
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fleetune.methods import is_baseline

if TYPE_CHECKING:
    from fleetune.compare.result import TrialResult

NEAR_CHANCE = 0.02
"""Share of the chance loss by which a validation loss may lie below it and show nothing learned."""
NEAR_CHANCE_IN_TRAINING = 0.03
"""The same of the training loss, which the order of the batches moves."""
STILL_FALLING = 0.02
"""Share by which the last evaluation lowers the loss where training ended too soon."""
LAST_STEPS = 5
"""The training loss at the end is the mean of one in so many steps."""


def chance_loss(labels: NDArray[Any], num_labels: int) -> float:
    """Returns the cross entropy, in nats, of who knows how frequent each label is and nothing of the text.

    It is the entropy of the labels' shares; where texts may have several, the mean over labels of each one's own.

    Args:
        labels: Class indices `(texts,)`, or 0/1 `(texts, num_labels)` where multi-label.
        num_labels: How many labels there are.

    Raises:
        ValueError: If there are no texts.
    """
    values = np.asarray(labels)
    if len(values) == 0:
        raise ValueError("no texts: the chance loss needs at least one label")
    if values.ndim == 2:
        shares = values.mean(axis=0, dtype=np.float64)
        return float((_surprise(shares) + _surprise(1.0 - shares)).mean())
    return float(_surprise(np.bincount(values.astype(np.int64), minlength=num_labels) / len(values)).sum())


def loss_at_chance(trial: TrialResult) -> str | None:
    """Returns in words that the loss of `trial` never left chance; None where it did, or where that is not known.

    Its lowest validation loss is at most 2 % below chance, and so is, within 3 %, its training loss at the end. A trial
    that knows its training texts by heart has a validation loss far above chance too, but a training loss far below:
    it learned, if not what was wanted. Where the training loss is no plain cross entropy, it cannot be held against
    chance, and the validation loss must lie within 2 % of it on both sides.
    """
    losses, chance = validation_losses(trial), _chance(trial)
    if is_baseline(trial.kind) or not losses or not chance:
        return None
    lowest, training = min(losses), _final_training_loss(trial)
    if lowest < (1.0 - NEAR_CHANCE) * chance:
        return None
    if training is None and lowest > (1.0 + NEAR_CHANCE) * chance:
        return None
    if training is not None and training < (1.0 - NEAR_CHANCE_IN_TRAINING) * chance:
        return None
    return f"its validation loss came down to {lowest:.4f} only, and guessing by the labels' shares has {chance:.4f}"


def under_trained(trial: TrialResult) -> str | None:
    """Returns a sentence on why the score of `trial` says little of its method, and what to try; None if it may.

    Either its loss never left chance, or its last evaluation is the best and lowered the validation loss by more than
    2 % (of the loss before, or of the chance loss where that is higher), with no early stopping.
    """
    if is_baseline(trial.kind):
        return None
    settings = _settings_in_words(trial)
    if reason := loss_at_chance(trial):
        diverged = _rose(trial)
        remedy = "another learning_rate, mostly a smaller one" if diverged else "a larger learning_rate or more epochs"
        word = "Diverged" if diverged else "Under-trained"
        return f"{word}{settings}: {reason}. Try {remedy} before judging the method."
    if (fall := _last_fall(trial)) is None:
        return None
    before, last = fall
    return (
        f"Under-trained{settings}: the last evaluation is the best, and the validation loss was still falling "
        f"(from {before:.4f} to {last:.4f}). Try a larger learning_rate or more epochs before judging the method."
    )


def _rose(trial: TrialResult) -> bool:
    """Returns whether the validation loss stayed above chance and did not fall, which takes more than patience."""
    losses = validation_losses(trial)
    outputs = 2 if trial.multi_label else len(trial.label_names)
    before = losses[0] if len(losses) > 1 else math.log(outputs)
    return min(losses) > (1.0 + NEAR_CHANCE) * (_chance(trial) or math.inf) and losses[-1] >= before


def validation_losses(trial: TrialResult) -> list[float]:
    """Returns the finite validation losses (unweighted cross entropy) in the order of the evaluations."""
    found = [one["metrics"].get("loss", one["metrics"].get("log_loss")) for one in trial.history]
    return [float(loss) for loss in found if loss is not None and math.isfinite(loss)]


def _surprise(shares: NDArray[np.float64]) -> NDArray[np.float64]:
    return -shares * np.log(np.where(shares > 0.0, shares, 1.0))


def _chance(trial: TrialResult) -> float | None:
    """Returns the chance loss on validation; None without its labels, or where all are the same."""
    labels = trial.labels("validation")
    return (chance_loss(np.asarray(labels), len(trial.label_names)) or None) if len(labels) else None


def _final_training_loss(trial: TrialResult) -> float | None:
    """Returns the mean training loss of the last fifth of the steps; None where it is no plain cross entropy."""
    plain = {"loss": "cross_entropy", "class_weights": "none"}
    if any(trial.training.get(key, value) != value for key, value in plain.items()):
        return None
    losses = [loss for _, loss in trial.losses if math.isfinite(loss)]
    return statistics.fmean(losses[-math.ceil(len(losses) / LAST_STEPS) :]) if losses else None


def _last_fall(trial: TrialResult) -> tuple[float, float] | None:
    """Returns the last two validation losses if the last evaluation is the best by far; else None."""
    losses = validation_losses(trial)
    if len(losses) < 2 or trial.stopped_early or losses[-1] > min(losses):
        return None
    if trial.best_step is not None and trial.best_step != trial.history[-1]["step"]:
        return None
    before, last = losses[-2:]
    return (before, last) if before - last > STILL_FALLING * max(before, _chance(trial) or 0.0) else None


def _settings_in_words(trial: TrialResult) -> str:
    settings = trial.training | trial.settings
    named = [f"learning_rate {settings['learning_rate']:g}"] if "learning_rate" in settings else []
    if "epochs" in settings:
        named.append(f"{settings['epochs']:g} epoch{'' if settings['epochs'] == 1 else 's'}")
    return f" with {' and '.join(named)}" if named else ""
