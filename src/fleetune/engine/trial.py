"""One trial while it trains: its tensors, where it stands in its data, and what it saves."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from fleetune.engine.backbone import Backbone
from fleetune.engine.checkpoint import load_checkpoint, save_checkpoint
from fleetune.engine.config import TrainingConfig
from fleetune.engine.dropout import Stream
from fleetune.engine.logits import KeptLogits
from fleetune.engine.optimizer import TrialOptimizer
from fleetune.engine.parameters import TrialParameters
from fleetune.engine.starts import plan_parameters
from fleetune.methods.base import Method
from fleetune.metrics import is_better
from fleetune.runtime import device, random_stream

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class TrialSpec:
    """What to train: one method with one setting of everything, one seed."""

    id: str
    method: Method
    training: TrainingConfig
    seed: int


@dataclass
class Progress:
    """Where a trial stands; together with its tensors all that a resume needs.

    Attributes:
        step: Optimizer steps made.
        evaluated_step: The last one that was followed by an evaluation.
        seconds: Time it has trained, its share of a fleet's.
        best_step: Step of its best evaluation, 0 before the first.
        best_value: The metric there.
        evaluations_without_gain: Since the best.
        stopped_early: Whether early stopping ended it.
        finished: Whether it has ended.
    """

    step: int = 0
    evaluated_step: int = 0
    seconds: float = 0.0
    best_step: int = 0
    best_value: float | None = None
    evaluations_without_gain: int = 0
    stopped_early: bool = False
    finished: bool = False


@dataclass
class StepTotals:
    """What one optimizer step has gathered over its micro-batches."""

    loss: float = 0.0
    texts: int = 0
    tokens: int = 0


class Trial:
    """A trial in a fleet.

    Args:
        spec: What to train.
        slot: Its place in the fleet.
        backbone: The frozen model.
        train: Indices of the training texts.
        folder: Where `last/` and `best/` go; None keeps nothing.
    """

    def __init__(
        self, spec: TrialSpec, slot: int, backbone: Backbone, train: NDArray[np.int64], folder: Path | None
    ) -> None:
        self.spec = spec
        self.slot = slot
        self.train = train
        self.folder = folder
        self.parameters = TrialParameters(
            plan_parameters(backbone, spec.method, spec.seed), backbone.master_dtype, device()
        )
        self.optimizer = TrialOptimizer(self.parameters, spec.training, self.total_steps)
        self.progress = Progress()
        self.best: dict[str, Tensor] | None = None
        self.best_logits: KeptLogits | None = None
        self.totals = StepTotals()
        self.micro_step = 0
        self._saved_at = time.monotonic()
        self._order: tuple[int, NDArray[np.int64]] | None = None

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in one pass; the last may hold fewer texts."""
        return self.spec.training.steps_per_epoch(len(self.train))

    @property
    def total_steps(self) -> int:
        """Optimizer steps in all."""
        return self.spec.training.total_steps(len(self.train))

    @property
    def epoch(self) -> float:
        """Passes made."""
        return self.progress.step / self.steps_per_epoch

    @property
    def owes_evaluation(self) -> bool:
        """Whether the step just made is to be followed by an evaluation that is not yet made."""
        if self.progress.step == self.progress.evaluated_step:
            return False
        period = self.spec.training.steps_between_evaluations(len(self.train))
        return self.progress.step % period == 0 or self.progress.step == self.total_steps

    def step_texts(self) -> NDArray[np.int64]:
        """Returns the texts of the optimizer step under way: each epoch in an order drawn from seed and epoch."""
        epoch, position = divmod(self.progress.step, self.steps_per_epoch)
        order = self._order_of(epoch)
        size = self.spec.training.batch_size * self.spec.training.gradient_accumulation_steps
        return self.train[order[position * size : (position + 1) * size]]

    def _order_of(self, epoch: int) -> NDArray[np.int64]:
        # Asked for at every micro-batch, and a permutation of a million texts takes as long as a step.
        if self._order is None or self._order[0] != epoch:
            self._order = epoch, epoch_order(self.spec.seed, epoch, len(self.train))
        return self._order[1]

    def trained_tokens(self, lengths: NDArray[np.int64]) -> int:
        """Returns the tokens in all optimizer steps made, whatever interrupted them.

        Args:
            lengths: `(texts,)` tokens of each text.
        """
        epochs, position = divmod(self.progress.step, self.steps_per_epoch)
        tokens = epochs * int(lengths[self.train].sum())
        if position:
            size = self.spec.training.batch_size * self.spec.training.gradient_accumulation_steps
            tokens += int(lengths[self.train[self._order_of(epochs)[: position * size]]].sum())
        return tokens

    def next_batch(self) -> NDArray[np.int64]:
        """Returns the texts of the next micro-batch of the optimizer step under way."""
        size = self.spec.training.batch_size
        return self.step_texts()[self.micro_step * size : (self.micro_step + 1) * size]

    def stream(self) -> Stream:
        """Returns what the dropout masks of the next micro-batch depend on."""
        training = self.spec.training
        return Stream(
            self.spec.seed, self.progress.step, self.micro_step, training.backbone_dropout, training.head_dropout
        )

    def finish_micro_step(self, loss: float, texts: int, tokens: int) -> bool:
        """Counts one micro-batch; returns whether the optimizer step is complete."""
        self.totals.loss += loss
        self.totals.texts += texts
        self.totals.tokens += tokens
        self.micro_step += 1
        return self.micro_step * self.spec.training.batch_size >= len(self.step_texts())

    def finish_step(self) -> tuple[StepTotals, float, float]:
        """Makes the optimizer step; returns its totals, the gradients' norm and the learning rate."""
        norm, rate = self.optimizer.step(self.progress.step)
        totals, self.totals, self.micro_step = self.totals, StepTotals(), 0
        self.progress.step += 1
        with torch.no_grad():
            self.spec.method.after_step(self.parameters.by_site, self.progress.step, self.total_steps)
        self.parameters.zero_gradients()
        return totals, norm, rate

    def judge(self, value: float) -> bool:
        """Takes note of an evaluation's metric; returns whether it is the best so far."""
        progress, training = self.progress, self.spec.training
        better = progress.best_value is None or is_better(training.metric, value, progress.best_value)
        if better:
            progress.best_step, progress.best_value, progress.evaluations_without_gain = progress.step, value, 0
            self.best = self.parameters.state()
            self._save_best()
        else:
            progress.evaluations_without_gain += 1
            patience = training.early_stopping_patience
            progress.stopped_early = patience is not None and progress.evaluations_without_gain >= patience
        return better

    @property
    def is_over(self) -> bool:
        """Whether no step is left."""
        return self.progress.stopped_early or self.progress.step >= self.total_steps

    def _save_best(self) -> None:
        if self.folder is not None and self.best is not None:
            save_checkpoint(self.folder / "best", self.best, self._facts())

    def save(self) -> None:
        """Writes everything a resume needs to `last/`; a finished trial leaves its optimizer state out."""
        self._saved_at = time.monotonic()
        if self.folder is None:
            return
        tensors = {f"parameters/{name}": tensor for name, tensor in self.parameters.state().items()}
        if not self.progress.finished:
            tensors |= {f"optimizer/{name}": tensor for name, tensor in self.optimizer.state().items()}
        if self.micro_step:
            tensors |= {f"gradients/{name}": tensor for name, tensor in self.parameters.gradients().items()}
        save_checkpoint(self.folder / "last", tensors, self._facts())

    def seconds_since_save(self) -> float:
        """Returns how long ago `save` was called."""
        return time.monotonic() - self._saved_at

    def _facts(self) -> dict[str, Any]:
        return {
            "trial": self.spec.id,
            "kind": self.spec.method.kind,
            "progress": asdict(self.progress),
            "micro_step": self.micro_step,
            "totals": asdict(self.totals),
        }

    def resume(self) -> bool:
        """Takes up the state in `last/` and `best/`; returns whether there was one."""
        saved = None if self.folder is None else load_checkpoint(self.folder / "last")
        if saved is None or self.folder is None:
            return False
        tensors, facts = saved
        self.parameters.load(_below("parameters/", tensors))
        self.optimizer.load(_below("optimizer/", tensors))
        self.progress = Progress(**facts["progress"])
        self.micro_step, self.totals = facts["micro_step"], StepTotals(**facts["totals"])
        for name, gradient in _below("gradients/", tensors).items():
            self.parameters.gradients()[name].copy_(gradient)
        best = load_checkpoint(self.folder / "best")
        if best is not None:
            # A kill between the two saves leaves a best from after `last`: the steps to it are made again.
            self.best = best[0]
        return True

    def restore_best(self) -> None:
        """Sets the parameters to those of the best evaluation."""
        if self.best is not None:
            self.parameters.load(self.best)


def _below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def epoch_order(seed: int, epoch: int, texts: int) -> NDArray[np.int64]:
    """Returns the order `(texts,)` in which a trial with `seed` sees its training texts in `epoch`."""
    return random_stream("order", seed, epoch).permutation(texts)
