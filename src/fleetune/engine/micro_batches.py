"""One micro-batch of every trial at a time, forward and backward over the frozen backbone."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from fleetune.engine.backbone import Backbone
from fleetune.engine.evaluation import shares_packs
from fleetune.engine.failures import is_own
from fleetune.engine.lanes import lanes
from fleetune.engine.layout import even_runs, pack_texts
from fleetune.engine.loss import batch_loss, class_weights
from fleetune.engine.trial import Trial
from fleetune.memory import is_out_of_memory
from fleetune.runtime import device

if TYPE_CHECKING:
    from torch import Tensor

    from fleetune.engine.fleet import FleetData

Work = tuple[float, int, int]
"""Loss, texts and tokens of a micro-batch."""
Gradients = Mapping[int, "tuple[Tensor, ...]"]
"""Flat gradients by slot; trials that are not there have none yet."""
SLOTS = 1 << 20
"""More than a fleet has trials: slots of the parts of a trial's batch lie this far apart."""


@dataclass(frozen=True)
class Part:
    """A run of the texts of one trial's micro-batch: all of them, or a lane's share.

    Attributes:
        trial: Whose.
        number: Which part of the micro-batch.
        start: Its first text.
        texts: Its texts.
        batch: The texts of the whole micro-batch.
        step_texts: All texts of the optimizer step.
    """

    trial: Trial
    number: int
    start: int
    texts: NDArray[np.int64]
    batch: NDArray[np.int64]
    step_texts: NDArray[np.int64]

    @property
    def slot(self) -> int:
        """Where the deltas are attached that this part's gradients go to."""
        return self.trial.slot + self.number * SLOTS


class MicroBatches:
    """Runs trials' micro-batches, of which as many run at a time as memory holds.

    Args:
        backbone: The frozen model.
        data: The texts.
        trials: All that may ever run.
    """

    def __init__(self, backbone: Backbone, data: FleetData, trials: Sequence[Trial]) -> None:
        self._backbone, self._data = backbone, data
        self._pack_trials = len(trials)
        self._least_parts = 1
        self._attached: dict[int, int] = {}
        self._labels = torch.from_numpy(np.ascontiguousarray(data.labels)).to(device())
        num_labels: Any = backbone.model.config.num_labels  # type: ignore[union-attr]
        train = data.labels[data.splits["train"]]
        self._weights = {
            trial.slot: class_weights(train, num_labels, trial.spec.training.class_weights) for trial in trials
        }

    @property
    def packing(self) -> dict[str, int]:
        """What running out of memory has changed in how trials run."""
        return {"pack_trials": self._pack_trials, "least_parts": self._least_parts}

    def pack_as(self, packing: Mapping[str, int]) -> None:
        """Runs trials as `packing` says of another time."""
        self._pack_trials = packing.get("pack_trials", self._pack_trials)
        self._least_parts = packing.get("least_parts", self._least_parts)

    def attach(self, trial: Trial, number: int = 0) -> None:
        """Puts a trial's deltas on the backbone, for part `number` of its micro-batches."""
        leaves, method = trial.parameters.leaves(number), trial.spec.method
        by_site = {place: leaves.at(place) for place in method.specs(self._backbone.shape)}
        self._backbone.attach(trial.slot + number * SLOTS, method, by_site)
        self._attached[trial.slot] = number + 1

    def detach(self, trial: Trial) -> None:
        """Takes a trial's deltas off the backbone, if they are on it."""
        for number in range(self._attached.pop(trial.slot, 0)):
            self._backbone.detach(trial.slot + number * SLOTS)

    def run(self, running: list[Trial]) -> dict[int, Work | Exception]:
        """Runs every trial's next micro-batch forward and backward; returns what came of it, by slot.

        That is an error where a trial's own pass raised it, and those of others did not.

        Where memory runs out, the packs become half as large and the micro-batches are run again: the gradients that
        accumulated before are put back first, so no trial is trained differently.

        Raises:
            Exception: What every trial's pass raised, or what is of none of them.
        """
        while True:
            before = {trial.slot: trial.parameters.copy_gradients() for trial in running if trial.micro_step}
            try:
                return self._backward_in_packs(running, before)
            except (MemoryError, RuntimeError) as error:
                # In any case: what is saved on the way out is resumed from.
                for trial in running:
                    trial.parameters.restore_gradients(before.get(trial.slot))
                if not (is_out_of_memory(error) and self._shrink(running)):
                    raise

    def _shrink(self, running: list[Trial]) -> bool:
        """Halves what runs at a time, first trials, then a trial's texts; returns False if one text is left."""
        if shares_packs(self._backbone) and min(self._pack_trials, len(running)) > 1:
            self._pack_trials = min(self._pack_trials, len(running)) // 2
            return True
        self._least_parts *= 2
        return self._least_parts <= max(2 * trial.spec.training.batch_size for trial in running)

    def _backward_in_packs(self, running: list[Trial], before: Gradients) -> dict[int, Work | Exception]:
        results: dict[int, Work] = {trial.slot: (0.0, 0, 0) for trial in running}
        failed: dict[int, Exception] = {}
        parts = dict.fromkeys(results, 1)
        attempt = partial(self._attempt, before=before)
        for part, loss in itertools.chain(*lanes().map(attempt, self._packs(running), self._backbone.serves_lanes)):
            if isinstance(loss, Exception):
                failed.setdefault(part.trial.slot, loss)
                continue
            so_far, texts, tokens = results[part.trial.slot]
            more = int(self._data.tokens.lengths[part.texts].sum())
            results[part.trial.slot] = so_far + loss, texts + len(part.texts), tokens + more
            parts[part.trial.slot] = max(parts[part.trial.slot], part.number + 1)
        if len(failed) == len(running):
            raise next(iter(failed.values()))
        for trial in running:
            trial.parameters.gather_gradients(parts[trial.slot])
        return {**results, **failed}

    def _attempt(self, pack: list[Part], before: Gradients) -> list[tuple[Part, float | Exception]]:
        """Returns each part's loss, or the error of a trial; those that share a pack with it run again without it."""
        try:
            return [*self._backward_of(pack)]
        except Exception as error:
            if not is_own(error):
                raise
            if len(pack) == 1:
                # Without its frames, which hold all that the pass computed.
                return [(pack[0], error.with_traceback(None))]
        for part in pack:
            part.trial.parameters.restore_part(part.number, before.get(part.trial.slot))
        return list(itertools.chain(*(self._attempt([part], before) for part in pack)))

    def _packs(self, running: list[Trial]) -> list[list[Part]]:
        """Returns which parts run in one pack: on a processor one each, on a GPU one of each of several trials."""
        parts = self._parts(running)
        if not shares_packs(self._backbone):
            return [[part] for part in parts]
        size = self._pack_trials
        rounds = [[part for part in parts if part.number == number] for number in {part.number for part in parts}]
        return [one[start : start + size] for one in rounds for start in range(0, len(one), size)]

    def _parts(self, running: list[Trial]) -> list[Part]:
        """Returns what the lanes are to do, the largest first: whole micro-batches, and parts of those left over."""
        count = lanes().count
        left_over = len(running) % count if count > 1 else 0
        parts = []
        for number, trial in enumerate(running):
            texts, step_texts = trial.next_batch(), trial.step_texts()
            pieces = -(-count // left_over) if number >= len(running) - left_over else 1
            # Modules that hold a trial's tensors hold one set of them.
            one_set = trial.spec.method.installs
            pieces = min(len(texts), max(1 if one_set else pieces, self._least_parts))
            for place, (start, end) in enumerate(even_runs(self._data.tokens.lengths[texts], pieces)):
                part = 0 if one_set else place
                if part >= self._attached[trial.slot]:
                    self.attach(trial, part)
                parts.append(Part(trial, part, start, texts[start:end], texts, step_texts))
        return sorted(parts, key=lambda part: -int(self._data.tokens.lengths[part.texts].sum()))

    def _backward_of(self, parts: list[Part]) -> list[tuple[Part, float]]:
        """Runs one pack forward and backward; returns each part's loss."""
        batches = [(part.slot, part.texts) for part in parts]
        counts, multiple = self._data.tokens.sequence_counts, self._backbone.pack_multiple
        firsts = [int(counts[part.batch[: part.start]].sum()) for part in parts]
        pack = pack_texts(self._data.tokens, batches, self._backbone.layout, firsts, multiple)
        heads = {part.slot: part.trial.parameters.leaves(part.number).head for part in parts}
        streams = {part.slot: part.trial.stream() for part in parts}
        checkpointing = any(part.trial.spec.training.gradient_checkpointing for part in parts)
        logits = self._backbone.logits(pack, heads, streams, checkpointing)
        losses = [self._loss(part, logits[part.slot]) for part in parts]
        torch.autograd.backward([*losses, *(self._penalty(part) for part in parts if self._is_penalised(part))])
        return list(zip(parts, torch.stack(losses).detach().tolist(), strict=True))

    def _loss(self, part: Part, logits: Tensor) -> Tensor:
        labels, step = (self._labels[torch.from_numpy(texts).to(device())] for texts in (part.texts, part.step_texts))
        training = part.trial.spec.training
        gamma = training.focal_gamma if training.loss == "focal" else None
        return batch_loss(logits, labels, step, self._weights[part.trial.slot], gamma)

    def _is_penalised(self, part: Part) -> bool:
        """Returns whether the method's own term of the loss comes with this part: once a micro-batch."""
        return part.start == 0 and part.trial.spec.method.has_penalty

    def _penalty(self, part: Part) -> Tensor:
        leaves, method = part.trial.parameters.leaves(part.number), part.trial.spec.method
        by_site = {place: leaves.at(place) for place in method.specs(self._backbone.shape)}
        return method.penalty(by_site) * (len(part.batch) / len(part.step_texts))
