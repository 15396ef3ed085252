"""Trains trials side by side over one frozen backbone."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from fleetune.data.dataset import SplitName
from fleetune.data.tokens import Tokens
from fleetune.engine.backbone import Backbone
from fleetune.engine.config import CHECKPOINT_SECONDS
from fleetune.engine.cuts import Cuts
from fleetune.engine.evaluation import EvaluationStoppedError, keep_logits
from fleetune.engine.events import Evaluated, Event, Failed, Finished, Stepped
from fleetune.engine.failures import is_own
from fleetune.engine.generation import CheckpointStore
from fleetune.engine.logits import KeptLogits
from fleetune.engine.micro_batches import MicroBatches, Work
from fleetune.engine.positions import check_lengths, check_room
from fleetune.engine.trial import Trial, TrialSpec
from fleetune.errors import TrialFailedError, in_one_line
from fleetune.memory import is_out_of_memory
from fleetune.metrics import evaluate
from fleetune.thresholds import validation_thresholds

Happened = TypeVar("Happened")
Outcome = KeptLogits | Exception
"""What a trial predicts, or what its pass raised."""


@dataclass(frozen=True)
class FleetData:
    """Texts as the engine sees them.

    Attributes:
        tokens: Every text's tokens.
        labels: `(texts,)` class indices, or `(texts, num_labels)` 0/1 where multi-label.
        splits: Indices by split; `train` must not be empty.
    """

    tokens: Tokens
    labels: NDArray[np.int64] | NDArray[np.uint8]
    splits: dict[SplitName, NDArray[np.int64]]


class Fleet:
    """Trials that train together. Adding one changes none of the others, whatever becomes of it.

    Args:
        backbone: The frozen model.
        specs: The trials.
        data: Their texts.
        checkpoints: Keeps what a resume needs; None keeps nothing on disk.
        checkpoint_seconds: How much of its time a fleet that is killed has to repeat, with an evaluation under way.
        is_stopped: Is asked between two micro-steps, and in evaluations, whether to save and end there.

    Raises:
        ValueError: If a trial cannot share the backbone's modules with the others.
        MethodError: If no trial's method fits the backbone.
        RecipeError: If a text, or what every trial's method puts to it, is too long for the backbone.
    """

    def __init__(
        self,
        backbone: Backbone,
        specs: Sequence[TrialSpec],
        data: FleetData,
        checkpoints: CheckpointStore | None = None,
        checkpoint_seconds: float = CHECKPOINT_SECONDS,
        is_stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        if len(specs) > 1 and any(spec.method.installs for spec in specs):
            raise ValueError("a trial whose method changes the backbone's modules trains in a fleet of its own")
        check_lengths(backbone, data.tokens)
        self.backbone = backbone
        self.data = data
        self.trials: list[Trial] = []
        self._unfit: dict[str, Exception] = {}
        for slot, spec in enumerate(specs):
            self._add(spec, slot)
        if not self.trials:
            raise next(iter(self._unfit.values()))
        self._cuts = Cuts(checkpoints, checkpoint_seconds)
        self._folder = None if checkpoints is None else checkpoints.root
        self._is_stopped = is_stopped
        self._is_settled, self._running = False, 0
        self._batches = MicroBatches(backbone, data, self.trials)

    def _add(self, spec: TrialSpec, slot: int) -> None:
        try:
            check_room(self.backbone, spec.method, self.data.tokens)
            self.trials.append(Trial(spec, slot, self.backbone, self.data.splits["train"]))
        except Exception as error:
            if not is_own(error):
                raise
            self._unfit[spec.id] = error

    def train(self) -> Iterator[Event]:
        """Yields what happens until every trial has finished or failed, or `is_stopped`; goes on from a checkpoint.

        A checkpoint is taken where every event before it has been dealt with and nothing is half done. Closing the
        iterator takes none: what is done since the last one is repeated when the fleet is taken up.
        """
        for unfit, error in self._unfit.items():
            yield Failed(unfit, 0, in_one_line(error))
        try:
            running, packing = self._cuts.take_up(self.trials)
            self._batches.pack_as(packing)
            for trial in running:
                self._batches.attach(trial)
            yield from self._train(running)
        finally:
            for trial in self.trials:
                self._batches.detach(trial)

    def _train(self, running: list[Trial]) -> Iterator[Event]:
        while running:
            self._is_settled, self._running = True, len(running)
            if (stopped := self._is_stopped()) or self._cuts.is_due:
                self._cuts.save(running, self._batches.packing)
            if stopped:
                return
            try:
                running = yield from self._go_on(running)
            except EvaluationStoppedError:
                # The trials are where they were before it.
                continue
            except Exception as error:
                # Two halves of the fleet may go on from here.
                if self._is_settled and is_out_of_memory(error):
                    self._cuts.save(running, self._batches.packing)
                raise
        self._cuts.end()

    def _go_on(self, running: list[Trial]) -> Generator[Event, None, list[Trial]]:
        """Does what comes next for trials of which every one is between two micro-steps; returns who still runs."""
        if owed := [trial for trial in running if trial.owes_evaluation]:
            failed = yield from self._evaluate(owed)
            return [trial for trial in running if trial not in failed]
        if ended := [trial for trial in running if trial.is_over]:
            yield from self._finish(ended)
            return [trial for trial in running if trial not in ended]
        failed = yield from self._advance(running)
        return [trial for trial in running if trial not in failed]

    def _advance(self, running: list[Trial]) -> Generator[Event, None, list[Trial]]:
        """Makes one micro-batch of every trial, and the optimizer steps that it completes; returns who failed."""
        started = time.monotonic()
        work = self._batches.run(running)
        self._is_settled = False
        happened = {trial: self._own(trial, partial(self._count, trial, work[trial.slot])) for trial in running}
        self._share_time(running, started)
        yield from (event for event in happened.values() if event is not None)
        return [trial for trial, event in happened.items() if isinstance(event, Failed)]

    def _own(self, trial: Trial, work: Callable[[], Happened]) -> Happened | Failed:
        """Returns what comes of a trial's own work; where it raises, the trial has failed, and the others go on."""
        try:
            return work()
        except Exception as error:
            if not is_own(error):
                raise
            return self._fail(trial, in_one_line(error))

    def _count(self, trial: Trial, work: Work | Exception) -> Stepped | None:
        """Counts one micro-batch of a trial; returns the optimizer step if that completes one.

        Raises:
            TrialFailedError: If the loss, or at the end a parameter, is not finite.
            Exception: What its pass raised.
        """
        loss, texts, tokens = _sound(work)
        if not math.isfinite(loss):
            raise TrialFailedError(f"the loss became {loss} at step {trial.progress.step + 1}")
        if not trial.finish_micro_step(loss, texts, tokens):
            return None
        stepped = self._step(trial)
        if trial.is_over and not trial.parameters.are_finite:
            raise TrialFailedError(f"parameters became infinite or NaN at step {trial.progress.step}")
        return stepped

    def _step(self, trial: Trial) -> Stepped:
        totals, norm, rate = trial.finish_step()
        return Stepped(
            trial=trial.spec.id,
            step=trial.progress.step,
            total_steps=trial.total_steps,
            epoch=trial.epoch,
            loss=totals.loss,
            learning_rate=rate,
            gradient_norm=norm,
            texts=totals.texts,
            tokens=totals.tokens,
        )

    def _fail(self, trial: Trial, reason: str) -> Failed:
        self._batches.detach(trial)
        return Failed(trial.spec.id, trial.progress.step, reason)

    def _share_time(self, trials: list[Trial], started: float) -> None:
        share = (time.monotonic() - started) / max(1, len(trials))
        for trial in trials:
            trial.progress.seconds += share

    def _evaluate(self, due: list[Trial]) -> Generator[Event, None, list[Trial]]:
        """Evaluates trials on validation, all in one pass; returns who failed."""
        texts = self.data.splits.get("validation", np.empty(0, dtype=np.int64))
        started = time.monotonic()
        logits = self._predict(due, texts) if len(texts) else {}
        seconds = (time.monotonic() - started) / len(due)
        self._is_settled = False
        self._share_time(due, started)
        failed = []
        for trial in due:
            trial.progress.evaluated_step = trial.progress.step
            if trial.slot in logits:
                event = self._own(trial, partial(self._judge, trial, texts, logits[trial.slot], seconds))
                failed += [trial] if isinstance(event, Failed) else []
                yield event
        return failed

    def _judge(self, trial: Trial, texts: NDArray[np.int64], outcome: Outcome, seconds: float) -> Evaluated:
        logits = _sound(outcome)
        labels, own = self.data.labels[texts], logits.array()
        _check_finite(trial, own, "validation")
        thresholds = validation_thresholds(trial.spec.training.thresholds, labels, own)
        metrics = evaluate(labels, own, thresholds)
        best = trial.judge(metrics[trial.spec.training.metric])
        if best:
            trial.best_logits = logits
        return Evaluated(
            trial.spec.id, trial.progress.step, trial.epoch, metrics, best, texts=len(texts), seconds=seconds
        )

    def _predict(self, trials: list[Trial], texts: NDArray[np.int64]) -> dict[int, Outcome]:
        """Returns logits by slot, or the error of a trial; what every trial of the fleet raises is raised."""
        failed: dict[int, Outcome] = {}
        while True:
            left = [trial for trial in trials if trial.slot not in failed]
            try:
                return {**self._logits(left, texts), **failed}
            except Exception as error:
                if not is_own(error):
                    raise
                found = self._errors_alone(left, texts)
                if not found or len(found) + len(failed) == self._running:
                    raise
            failed |= found

    def _errors_alone(self, trials: list[Trial], texts: NDArray[np.int64]) -> dict[int, Outcome]:
        """Returns by slot what trials raise that are asked alone."""
        errors: dict[int, Outcome] = {}
        for trial in trials:
            try:
                self._logits([trial], texts)
            except Exception as error:
                if not is_own(error):
                    raise
                errors[trial.slot] = error.with_traceback(None)
        return errors

    def _logits(self, trials: list[Trial], texts: NDArray[np.int64]) -> dict[int, KeptLogits]:
        return keep_logits(self.backbone, trials, self.data.tokens, texts, self._folder, self._is_stopped)

    def _finish(self, ended: list[Trial]) -> Iterator[Event]:
        """Predicts validation and test with each trial's best parameters, and lets them go."""
        started = time.monotonic()
        predictions, read = self._predict_best(ended)
        self._is_settled = False
        seconds_a_text = (time.monotonic() - started) / max(1, sum(read.values()))
        self._share_time(ended, started)
        for trial in ended:
            # Looked at and let go trial by trial: what is in files does not come into memory together.
            own = predictions.pop(trial.slot)
            yield self._own(trial, partial(self._end, trial, own, read[trial.slot], seconds_a_text))

    def _end(self, trial: Trial, predictions: dict[SplitName, Outcome], read: int, seconds_a_text: float) -> Finished:
        """Writes what readers need of a trial that has ended, and lets it go."""
        arrays = {split: _sound(kept).array() for split, kept in predictions.items()}
        for split, logits in arrays.items():
            _check_finite(trial, logits, split)
        trial.progress.finished = True
        self._cuts.close(trial)
        trial.best_logits = None
        self._batches.detach(trial)
        return Finished(
            trial=trial.spec.id,
            steps=trial.progress.step,
            best_step=trial.progress.best_step or trial.progress.step,
            stopped_early=trial.progress.stopped_early,
            seconds=trial.progress.seconds,
            predictions=arrays,
            evaluated_texts=read,
            evaluation_seconds=read * seconds_a_text,
            trained_tokens=trial.trained_tokens(self.data.tokens.lengths),
        )

    def _predict_best(self, ended: list[Trial]) -> tuple[dict[int, dict[SplitName, Outcome]], dict[int, int]]:
        """Returns by slot what the best parameters predict, and how many texts were read for it."""
        last = {trial.slot: trial.parameters.state() for trial in ended}
        predictions: dict[int, dict[SplitName, Outcome]] = {trial.slot: {} for trial in ended}
        read = {trial.slot: 0 for trial in ended}
        try:
            for trial in ended:
                trial.restore_best()
            for split in ("validation", "test"):
                texts = self.data.splits.get(split, np.empty(0, dtype=np.int64))
                if not len(texts):
                    continue
                known = {trial.slot: trial.best_logits for trial in ended if split == "validation"}
                unknown = [trial for trial in ended if known.get(trial.slot) is None]
                read |= {trial.slot: read[trial.slot] + len(texts) for trial in unknown}
                for slot, logits in {**known, **self._predict(unknown, texts)}.items():
                    assert logits is not None
                    predictions[slot][split] = logits
        finally:
            for trial in ended:
                trial.parameters.load(last[trial.slot])
        return predictions, read


def _sound(outcome: Happened | Exception) -> Happened:
    """Returns what came of a trial's pass; raises the error if that is one."""
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


def _check_finite(trial: Trial, logits: NDArray[np.float32], split: SplitName) -> None:
    if not np.isfinite(logits).all():
        raise TrialFailedError(f"logits on {split} became infinite or NaN by step {trial.progress.step}")
