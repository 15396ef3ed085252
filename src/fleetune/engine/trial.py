"""One trial while it trains: its tensors, where it stands in its data, and what it saves."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from fleetune.engine.backbone import Backbone
from fleetune.engine.checkpoint import SavedFile, load_tensors, save_checkpoint, save_tensors
from fleetune.engine.config import TrainingConfig
from fleetune.engine.dropout import Stream
from fleetune.engine.generation import KEPT, TrialCut
from fleetune.engine.logits import KeptLogits
from fleetune.engine.optimizer import TrialOptimizer
from fleetune.engine.parameters import TrialParameters
from fleetune.engine.starts import plan_parameters
from fleetune.methods.base import Method
from fleetune.metrics import is_better
from fleetune.runtime import device, random_stream

if TYPE_CHECKING:
    from torch import Tensor

PARAMETERS, OPTIMIZER, GRADIENTS, LOGITS = "parameters/", "optimizer/", "gradients/", "logits"
"""Names, or their beginnings, of what lies in the files of a checkpoint."""


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
    """

    def __init__(self, spec: TrialSpec, slot: int, backbone: Backbone, train: NDArray[np.int64]) -> None:
        self.spec = spec
        self.slot = slot
        self.train = train
        self.parameters = TrialParameters(
            plan_parameters(backbone, spec.method, spec.seed), backbone.master_dtype, device()
        )
        self.optimizer = TrialOptimizer(self.parameters, spec.training, self.total_steps)
        self.progress = Progress()
        self.best: dict[str, Tensor] | None = None
        self.best_logits: KeptLogits | None = None
        self.totals = StepTotals()
        self.micro_step = 0
        self._best_files: deque[tuple[int, SavedFile]] = deque(maxlen=KEPT)
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
        else:
            progress.evaluations_without_gain += 1
            patience = training.early_stopping_patience
            progress.stopped_early = patience is not None and progress.evaluations_without_gain >= patience
        return better

    @property
    def is_over(self) -> bool:
        """Whether no step is left."""
        return self.progress.stopped_early or self.progress.step >= self.total_steps

    def cut(self, root: Path, name: str) -> TrialCut:
        """Writes everything a resume needs into files called after `name`, and returns what they are.

        A trial that is over leaves its optimizer's state out.
        """
        tensors = {f"{PARAMETERS}{key}": tensor for key, tensor in self.parameters.tensors.items()}
        if not self.is_over:
            tensors |= {f"{OPTIMIZER}{key}": tensor for key, tensor in self.optimizer.state().items()}
        if self.micro_step:
            tensors |= {f"{GRADIENTS}{key}": tensor for key, tensor in self.parameters.gradients().items()}
        last = save_tensors(root, f"{self.spec.id}/last/state-{name}.safetensors", tensors)
        facts = {"progress": asdict(self.progress), "micro_step": self.micro_step, "totals": asdict(self.totals)}
        return TrialCut(self.spec.id, facts, last, self._best_file(root, name))

    def _best_file(self, root: Path, name: str) -> SavedFile | None:
        """Returns a file of the best evaluation that the generation before does not use: one damaged file harms one."""
        if self.best is None:
            return None
        step = self.progress.best_step
        if len(self._best_files) == KEPT and self._best_files[0][0] == step:
            file = self._best_files[0][1]
        else:
            tensors = {f"{PARAMETERS}{key}": tensor for key, tensor in self.best.items()}
            if self.best_logits is not None:
                tensors[LOGITS] = torch.from_numpy(self.best_logits.array())
            file = save_tensors(root, f"{self.spec.id}/best/state-{name}.safetensors", tensors)
        self._best_files.append((step, file))
        return file

    def resume(self, cut: TrialCut, root: Path) -> None:
        """Takes up the state that `cut` returned."""
        tensors, facts = load_tensors(root, cut.last), cut.facts
        self.parameters.load(_below(PARAMETERS, tensors))
        self.optimizer.load(_below(OPTIMIZER, tensors))
        self.progress = Progress(**facts["progress"])
        self.micro_step, self.totals = facts["micro_step"], StepTotals(**facts["totals"])
        for name, gradient in _below(GRADIENTS, tensors).items():
            self.parameters.gradients()[name].copy_(gradient)
        if cut.best is not None:
            best = load_tensors(root, cut.best)
            self.best = _below(PARAMETERS, best)
            self.best_logits = KeptLogits.of(best[LOGITS].numpy(), root) if LOGITS in best else None
            self._best_files.append((self.progress.best_step, cut.best))

    def write_final(self, folder: Path) -> None:
        """Writes what readers need of a trial that has ended: the same bytes, however often it was stopped."""
        facts = self._final_facts()
        if self.best is not None:
            save_checkpoint(folder / "best", self.best, facts)
        last = {f"{PARAMETERS}{name}": tensor for name, tensor in self.parameters.tensors.items()}
        save_checkpoint(folder / "last", last, facts)

    def _final_facts(self) -> dict[str, Any]:
        progress: Mapping[str, Any] = asdict(self.progress)
        return {
            "trial": self.spec.id,
            "kind": self.spec.method.kind,
            # Seconds are in the ledger.
            "progress": {name: value for name, value in progress.items() if name != "seconds"},
        }

    def restore_best(self) -> None:
        """Sets the parameters to those of the best evaluation, if there was one."""
        if self.best is not None:
            self.parameters.load(self.best)


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def epoch_order(seed: int, epoch: int, texts: int) -> NDArray[np.int64]:
    """Returns the order `(texts,)` in which a trial with `seed` sees its training texts in `epoch`."""
    return random_stream("order", seed, epoch).permutation(texts)
