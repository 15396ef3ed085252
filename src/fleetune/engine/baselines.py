"""Fits one baseline and predicts with it, and reports that as a fleet reports its trials."""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from fleetune.data.arrays import GivenTexts
from fleetune.data.dataset import Dataset, SplitName
from fleetune.engine.events import Evaluated, Event, Failed, Finished
from fleetune.engine.failures import is_of_all
from fleetune.engine.trial import TrialSpec
from fleetune.errors import FleetuneError, TrialFailedError
from fleetune.methods.baseline import Baseline, Fitted, PretrainedModel, Task
from fleetune.metrics import evaluate
from fleetune.thresholds import validation_thresholds


def run_baseline(spec: TrialSpec, dataset: Dataset, model: PretrainedModel | None = None) -> Iterator[Event]:
    """Yields an evaluation on validation and the end of a baseline's trial, or its failure.

    Args:
        spec: The trial; its method is a baseline.
        dataset: Its texts.
        model: The pretrained model, for a baseline that reads it.

    Raises:
        OSError: Or another error that is not the trial's own: of the disk, the run or the accelerator.
    """
    assert isinstance(spec.method, Baseline)
    started = time.monotonic()
    try:
        fitted = spec.method.fit(task_of(spec, dataset, model))
        fitted_at = time.monotonic()
        predictions = {split: _predicted(fitted, dataset, split, rows) for split, rows in held_out(dataset).items()}
    except Exception as error:  # what goes wrong in it, memory too, stays in it
        if is_of_all(error):
            raise
        yield Failed(spec.id, 0, _reason(error))
        return
    ended = time.monotonic()
    if "validation" in predictions:
        labels, logits = dataset.labels[dataset.splits["validation"]], predictions["validation"]
        thresholds = validation_thresholds(spec.training.thresholds, labels, logits)
        yield Evaluated(spec.id, 0, 0.0, evaluate(labels, logits, thresholds), best=True)
    yield Finished(
        spec.id,
        steps=0,
        best_step=0,
        stopped_early=False,
        seconds=ended - started,
        predictions=predictions,
        parameters=fitted.parameters,
        evaluated_texts=sum(map(len, predictions.values())),
        evaluation_seconds=ended - fitted_at,
    )


def task_of(spec: TrialSpec, dataset: Dataset, model: PretrainedModel | None) -> Task:
    """Returns what the trial's baseline may know: the training texts, and nothing of the others."""
    rows = dataset.splits["train"]
    weights = spec.training.class_weights
    return Task(dataset.label_names, texts_of(dataset, rows), dataset.labels[rows], weights, model)


def held_out(dataset: Dataset) -> dict[SplitName, NDArray[np.int64]]:
    """Returns the rows of the splits that are predicted, those without texts left out."""
    splits: tuple[SplitName, ...] = ("validation", "test")
    return {split: dataset.splits[split] for split in splits if len(dataset.splits.get(split, ()))}


def texts_of(dataset: Dataset, rows: NDArray[np.int64]) -> GivenTexts:
    """Returns the chosen texts or pairs of a data set."""
    second = None if dataset.pairs is None else [dataset.pairs[row] for row in rows]
    return GivenTexts([dataset.texts[row] for row in rows], second)


def _predicted(fitted: Fitted, dataset: Dataset, split: SplitName, rows: NDArray[np.int64]) -> NDArray[np.float32]:
    with np.errstate(over="ignore"):  # what float32 cannot hold is infinite, and said below
        logits = np.asarray(fitted.logits(texts_of(dataset, rows)), dtype=np.float32)
    if logits.shape != (len(rows), dataset.num_labels):
        raise ValueError(f"logits have shape {logits.shape}; ({len(rows)}, {dataset.num_labels}) was expected")
    if not np.isfinite(logits).all():
        raise TrialFailedError(f"logits on {split} became infinite or NaN")
    return logits


def _reason(error: Exception) -> str:
    said = (str(error).strip() or type(error).__name__).splitlines()[0]
    return said if isinstance(error, FleetuneError) else f"{type(error).__name__}: {said}"
