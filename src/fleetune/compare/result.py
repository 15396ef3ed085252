"""What one trial left behind: all that a comparison or a report may read of it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fleetune.compare.learning import loss_at_chance
from fleetune.compare.stored import Pair, labels_of
from fleetune.methods import is_baseline, is_floor
from fleetune.metrics import (
    BoolArray,
    evaluate,
    majority_share,
    predicted_classes,
    predicted_sets,
    probabilities_of,
)
from fleetune.thresholds import NEUTRAL, final_thresholds, validation_thresholds

TrialStatus = Literal["done", "failed", "running", "pending"]
Predictions = Pair
Configuration = tuple[str, ...]
CHANCE_AREA = 0.5
GUESSING = 1.645
"""Of a standard normal, what guesses exceed once in twenty times."""
CLEARLY_LEARNED = 0.5
"""Share of the way from chance to perfect from which decisions outweigh a loss at chance."""


@dataclass(frozen=True)
class TrialResult:
    """One trial as the ledger and its files hold it.

    Attributes:
        id: Hash of everything that determines the result.
        data: Name of the data.
        backbone: Name of the backbone.
        method: Name of the method in the recipe, made from its settings if absent there.
        kind: The method's kind, such as `lora`.
        settings: The method's settings, defaults included.
        seed: Seed of the trial.
        status: How far it came.
        metric: Name of the metric on validation that chose the best checkpoint.
        label_names: Labels in the order of the logits.
        multi_label: Whether a text may have several labels, or none.
        training: The resolved training settings, seed excluded.
        reason: Why it failed, None where it did not.
        predictions: By split: labels `(texts,)` or 0/1 `(texts, num_labels)`, and logits `(texts, num_labels)`
            of the best checkpoint. Row i is the same text in every trial on the same data.
        history: Evaluations on validation in order: `{"step": …, "epoch": …, "metrics": {name: value}}`.
        losses: Training loss as `(step, loss)` in order.
        parameters: Numbers under `adapter`, `head`, `trainable` and `total`.
        seconds: Training and evaluation, None where not finished.
        peak_bytes: Peak memory of the process that trained it (shared by its fleet).
        bundle_bytes: Size of the saved classifier without the backbone.
        best_step: Step of the checkpoint that the predictions are of.
        stopped_early: Whether early stopping ended it.
        entry: Name of its `[[method]]` in the recipe, which all points of a grid share; None in older runs.
        train_share: Share of the training texts it was given, below 1 on a learning curve over data size.
        train_texts: How many those are; None where not known.
        operations: Floating-point operations of its training and evaluations; None where not known.
        serving_operations: Floating-point operations of one text of mean length in prediction, the adapter unmerged.
        evaluation_texts_per_second: Throughput of its evaluations, None where not known.
        texts_per_second: Training throughput of its fleet.
        tokens_per_second: Training throughput of its fleet.
        layout: `packed` or `padded`.
        layout_reason: Why that layout.
        precision: What the frozen weights were computed in.
        notes: What the backbone said when it was loaded, such as which head layers the checkpoint lacked.
    """

    id: str
    data: str
    backbone: str
    method: str
    kind: str
    settings: dict[str, Any]
    seed: int
    status: TrialStatus
    metric: str
    label_names: list[str]
    multi_label: bool = False
    training: dict[str, Any] = field(default_factory=dict)
    reason: str | None = None
    predictions: Mapping[str, Predictions] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    losses: Sequence[tuple[int, float]] = ()
    parameters: dict[str, int] = field(default_factory=dict)
    seconds: float | None = None
    peak_bytes: int | None = None
    bundle_bytes: int | None = None
    best_step: int | None = None
    stopped_early: bool = False
    entry: str | None = None
    train_share: float = 1.0
    train_texts: int | None = None
    operations: float | None = None
    serving_operations: float | None = None
    evaluation_texts_per_second: float | None = None
    texts_per_second: float | None = None
    tokens_per_second: float | None = None
    layout: str | None = None
    layout_reason: str | None = None
    precision: str | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def configuration(self) -> Configuration:
        """What all seeds of one configuration share, as a key."""
        return (
            self.data,
            self.backbone,
            self.method,
            self.kind,
            _canonical(self.settings),
            _canonical({key: value for key, value in self.training.items() if key not in ("seed", "seeds")}),
        )

    def labels(self, split: str) -> NDArray[Any]:
        """Returns the labels of the texts of `split` that it predicted; none where it did not. Reads no logits."""
        return labels_of(self.predictions, split)

    def probabilities(self, split: str) -> NDArray[np.float64]:
        """Returns the probabilities `(texts, num_labels)` on `split`, computed in float64."""
        return probabilities_of(self.predictions[split][1], self.multi_label)

    @cached_property
    def final_thresholds(self) -> NDArray[np.float64] | None:
        """Probability `(num_labels,)` from which each label is given, by validation and the rule; None single-label."""
        if not self.multi_label:
            return None
        return final_thresholds(self._rule, len(self.label_names), self.predictions.get("validation"))

    @cached_property
    def _validation_thresholds(self) -> NDArray[np.float64] | None:
        return validation_thresholds(self._rule, *self.predictions["validation"])

    @property
    def _rule(self) -> Any:
        return self.training.get("thresholds", NEUTRAL)

    def thresholds(self, split: str) -> NDArray[np.float64] | None:
        """Returns what `split` is judged by: `final_thresholds`, and on validation `(texts, num_labels)` cross-fitted.

        A number of a report is recomputed from these and the trial's predictions; None where single-label.
        """
        return self._validation_thresholds if split == "validation" else self.final_thresholds

    def scores(self, split: str) -> dict[str, float]:
        """Returns every metric by name on `split`.

        Raises:
            KeyError: If there are no predictions for it.
        """
        return evaluate(*self.predictions[split], self.thresholds(split))

    def decisions(self, split: str) -> NDArray[np.int64]:
        """Returns predicted classes `(texts,)` on `split`, or 0/1 `(texts, num_labels)` where multi-label."""
        probabilities = self.probabilities(split)
        if not self.multi_label:
            return predicted_classes(probabilities)
        return predicted_sets(probabilities, self.thresholds(split))

    def correct(self, split: str) -> BoolArray:
        """Returns whether each text's class, or whole set of labels, is right `(texts,)` on `split`."""
        right = self.decisions(split) == self.labels(split)
        return np.asarray(right.all(axis=1) if self.multi_label else right)

    def degenerate_reason(self, split: str) -> str | None:
        """Returns why its predictions on `split` show nothing learned, or None where they do show something.

        Degenerate are logits that are not numbers, one and the same prediction for every text, where texts have one
        label each, no more right answers than the most frequent class gets without any correlation with the labels
        beyond that of guesses, and where they may have several, a mean
        ROC-AUC no higher than chance: tuned thresholds find something to part even where nothing was learned.
        So is a loss that never left chance, unless the decisions are half way from chance to perfect: logits may be
        tiny and in the right order.
        Texts that all have the same labels tell nothing.
        A baseline may get fewer right, for it may not know which class is frequent; and the one that is meant to learn
        nothing is not degenerate.
        """
        if is_floor(self.kind):
            return None
        if split not in self.predictions or len(self.labels(split)) == 0:
            return None
        labels, logits = self.predictions[split]
        if not np.isfinite(logits).all():
            return "logits are not numbers"
        if (labels == labels[0]).all():
            return None
        decisions = self.decisions(split)
        if (decisions == decisions[0]).all():
            return f"predicts {self._described(decisions[0])} for every text"
        right, majority = float(self.correct(split).mean()), majority_share(labels)
        if not self.multi_label and right <= majority and not is_baseline(self.kind) and self._guesses(split):
            return f"accuracy {right:.3f} is not above the majority class's {majority:.3f}"
        if self.multi_label and (area := self.scores(split)["roc_auc"]) <= CHANCE_AREA:
            return f"the mean ROC-AUC over labels, {area:.3f}, is not above chance"
        if (reason := loss_at_chance(self)) and not self._clearly_learned(split):
            return f"loss at chance: {reason}"
        return None

    def _guesses(self, split: str) -> bool:
        """Returns whether predictions hang together with the labels no more than guesses would by chance (95 %).

        Where one class is rare, few right answers more or less than the majority's say nothing: of the correlation of
        guesses with the truth, n times its square is chi-squared (Pearson, 1900).
        """
        return bool(self.scores(split)["matthews"] * len(self.labels(split)) ** 0.5 <= GUESSING)

    def _clearly_learned(self, split: str) -> bool:
        if self.multi_label:
            return self.scores(split)["roc_auc"] >= CHANCE_AREA + CLEARLY_LEARNED * (1.0 - CHANCE_AREA)
        majority = majority_share(self.labels(split))
        return float(self.correct(split).mean()) >= majority + CLEARLY_LEARNED * (1.0 - majority)

    def _described(self, decision: Any) -> str:
        if self.multi_label:
            chosen = [name for name, value in zip(self.label_names, decision, strict=True) if value]
            return f"the labels {', '.join(chosen)}" if chosen else "no label"
        return f"'{self.label_names[int(decision)]}'"


def _canonical(settings: dict[str, Any]) -> str:
    return json.dumps(settings, sort_keys=True, default=str)
