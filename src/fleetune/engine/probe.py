"""A short training for real: what a step, an evaluation and their memory take on this machine."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fleetune.data.dataset import SplitName
from fleetune.data.tokens import Tokens
from fleetune.engine.backbone import Backbone
from fleetune.engine.config import TrainingConfig
from fleetune.engine.evaluation import shares_packs, tokens_in_one_pass
from fleetune.engine.events import Evaluated, Stepped
from fleetune.engine.fleet import Fleet, FleetData
from fleetune.engine.lanes import lanes
from fleetune.engine.operations import training_operations
from fleetune.engine.trial import TrialSpec, epoch_order
from fleetune.memory import peak_bytes
from fleetune.methods.base import Method

STEPS = 6
"""The first half warms up: code is generated, memory is paged in."""
MOST_OPERATIONS = 3e11
"""Of a step: with larger backbones on a processor, a step of the probe holds fewer texts."""
SEED = 0


@dataclass(frozen=True)
class Probe:
    """What training took, in a fleet of several of the same trial.

    Attributes:
        train_seconds: For one token of one trial; trials that work side by side share a second.
        evaluation_seconds: The same, for one token evaluated.
        batch_tokens: Of the largest batch.
        peak_bytes: Memory of the process, or of the GPU, since the peak was last begun.
    """

    train_seconds: float
    evaluation_seconds: float
    batch_tokens: int
    peak_bytes: int


def side_by_side(backbone: Backbone, trials: int) -> int:
    """Returns how many of a fleet's trials are worked on at a time."""
    return trials if shares_packs(backbone) else min(trials, lanes().count)


def probe(backbone: Backbone, method: Method, training: TrainingConfig, data: FleetData, trials: int) -> Probe:
    """Returns what a few steps of a fleet of `trials` trials took; nothing is kept of them.

    Its first batch is the largest of the first epoch, so that the peak of memory is that of the training.
    """
    batch = _batch_size(backbone, method, training, data)
    short = training.model_copy(
        update={
            "max_steps": STEPS,
            "batch_size": batch,
            "gradient_accumulation_steps": 1,
            "evaluate_every": STEPS // 2,
            "early_stopping_patience": None,
            "class_weights": "none",
            "learning_rate": 1e-6,
        }
    )
    specs = [TrialSpec(f"probe-{number}", method, short, SEED) for number in range(trials)]
    taken = _Taken()
    fleet = Fleet(backbone, specs, _few_texts(data, batch))
    events, resumed = fleet.train(), time.perf_counter()
    for event in events:
        taken.count(event, time.perf_counter() - resumed)
        resumed = time.perf_counter()
    evaluated = trials * int(data.tokens.lengths[fleet.data.splits["validation"]].sum())
    return Probe(
        train_seconds=taken.train_seconds / taken.tokens,
        evaluation_seconds=taken.evaluation_seconds / evaluated,
        batch_tokens=largest_batch(data, batch),
        peak_bytes=peak_bytes(),
    )


@dataclass
class _Taken:
    """Time and tokens of the steps after the first half, and of the fleet's last evaluation."""

    train_seconds: float = 0.0
    tokens: int = 0
    evaluation_seconds: float = 0.0

    def count(self, event: object, seconds: float) -> None:
        """Adds an event that took `seconds`: a fleet computes for all trials, then tells of each."""
        match event:
            case Stepped() if event.step > STEPS // 2:
                self.train_seconds += seconds
                self.tokens += event.tokens
            case Evaluated() if event.step == STEPS:
                self.evaluation_seconds += seconds


def _batch_size(backbone: Backbone, method: Method, training: TrainingConfig, data: FleetData) -> int:
    mean = float(data.tokens.lengths[data.splits["train"]].mean())
    per_text = mean * training_operations(backbone.shape, method)
    fit = training.batch_size if shares_packs(backbone) else int(MOST_OPERATIONS / max(per_text, 1.0))
    return max(1, min(training.batch_size, fit))


def _few_texts(data: FleetData, batch: int) -> FleetData:
    """Returns the data with a few texts: the batches of the probe's steps, and two passes of an evaluation."""
    train = data.splits["train"]
    wanted = np.concatenate(list(_batches(data.tokens, train, batch)))
    texts = np.empty_like(wanted)
    texts[epoch_order(SEED, 0, len(wanted))] = wanted
    evaluated = next((data.splits[split] for split in ("validation", "test") if len(data.splits.get(split, ()))), train)
    splits: dict[SplitName, NDArray[np.int64]] = {
        "train": texts,
        "validation": _of_tokens(data.tokens, evaluated, 2 * tokens_in_one_pass()),
    }
    return FleetData(data.tokens, data.labels, splits)


def _batches(tokens: Tokens, train: NDArray[np.int64], batch: int) -> Iterator[NDArray[np.int64]]:
    """Yields the largest batch of the first epoch, then those nearest to the mean."""
    batches = _first_epoch(train, batch)
    sizes = tokens.lengths[batches].sum(axis=1)
    yield batches[np.argmax(sizes)]
    usual = np.argsort(np.abs(sizes - sizes.mean()), kind="stable")
    for number in range(STEPS - 1):
        yield batches[usual[number % len(usual)]]


def largest_batch(data: FleetData, batch: int) -> int:
    """Returns the tokens of the largest batch of the first epoch."""
    return int(data.tokens.lengths[_first_epoch(data.splits["train"], batch)].sum(axis=1).max())


def _first_epoch(train: NDArray[np.int64], batch: int) -> NDArray[np.int64]:
    """Returns the texts `(batches, batch)` of the first epoch in whole batches."""
    order = train[epoch_order(SEED, 0, len(train))]
    if len(order) < batch:
        order = np.resize(order, batch)
    return order[: len(order) // batch * batch].reshape(-1, batch)


def _of_tokens(tokens: Tokens, texts: NDArray[np.int64], limit: int) -> NDArray[np.int64]:
    """Returns texts drawn at random that hold about `limit` tokens, all of them if they hold fewer."""
    drawn = texts[epoch_order(SEED, 1, len(texts))]
    held = np.cumsum(tokens.lengths[drawn])
    return drawn[: int(np.searchsorted(held, limit)) + 1]
