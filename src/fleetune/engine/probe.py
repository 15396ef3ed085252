"""A short training for real: what a step, an evaluation and their memory take on this machine."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray

from fleetune.data.dataset import SplitName, are_known
from fleetune.data.tokens import Tokens
from fleetune.engine.backbone import Backbone
from fleetune.engine.config import TrainingConfig
from fleetune.engine.evaluation import shares_packs, tokens_in_one_pass
from fleetune.engine.events import Evaluated, Event, Failed, Stepped
from fleetune.engine.fleet import Fleet, FleetData
from fleetune.engine.footprint import trained_bytes
from fleetune.engine.generation import FolderCheckpoints
from fleetune.engine.lanes import lanes
from fleetune.engine.operations import training_operations
from fleetune.engine.trial import TrialSpec, epoch_order
from fleetune.errors import BackboneError
from fleetune.memory import peak_bytes
from fleetune.methods.base import Method

WARM_STEPS = 4
"""Code is generated, memory is paged in. An evaluation and the largest batch follow, when all that is kept exists."""
STEPS = 2 * WARM_STEPS
MOST_OPERATIONS = 3e11
"""Of a step: with larger backbones on a processor, a step of the probe holds fewer texts."""
SEED = 0


@dataclass(frozen=True)
class Probe:
    """What training took, in a fleet of several of the same trial.

    Attributes:
        trials: How many there were.
        train_seconds: For one token of one trial; trials that work side by side share a second.
        evaluation_seconds: The same, for one token evaluated.
        peak_bytes: Memory of the process, or of the GPU, since the peak was last begun.
        trained_bytes: The part of it that is the trials' own.
        missing_tokens: How many more than the probe's largest batch the training's has.
    """

    trials: int
    train_seconds: float
    evaluation_seconds: float
    peak_bytes: int
    trained_bytes: int
    missing_tokens: int


def side_by_side(backbone: Backbone, trials: int) -> int:
    """Returns how many of a fleet's trials are worked on at a time."""
    return trials if shares_packs(backbone) else min(trials, lanes().count)


def probe(backbone: Backbone, method: Method, training: TrainingConfig, data: FleetData, trials: int) -> Probe:
    """Returns what a few steps of a fleet of `trials` trials took; nothing is kept of them.

    The batch that is largest in an epoch is among them.

    Raises:
        BackboneError: If a step's loss is no number.
    """
    batch = _batch_size(backbone, method, training, data)
    short = training.model_copy(
        update={
            "max_steps": STEPS,
            "batch_size": batch,
            "gradient_accumulation_steps": 1,
            "evaluate_every": WARM_STEPS,
            "early_stopping_patience": None,
            "class_weights": "none",
            "learning_rate": 1e-6,
        }
    )
    specs = [TrialSpec(f"probe-{number}", method, short, SEED) for number in range(trials)]
    taken = _Taken()
    # What a trial leaves is written as in a run.
    with TemporaryDirectory(prefix="fleetune-") as folder:
        fleet = Fleet(backbone, specs, _few_texts(backbone, data, batch), FolderCheckpoints(Path(folder)))
        for event in fleet.train():
            taken.count(event, sum(trial.progress.seconds for trial in fleet.trials))
    evaluated = trials * int(data.tokens.lengths[fleet.data.splits["validation"]].sum())
    full, tried = (largest_batch(backbone, data, size) for size in (training.batch_size, batch))
    return Probe(
        trials=trials,
        train_seconds=taken.train_seconds / taken.tokens,
        evaluation_seconds=taken.evaluation_seconds / evaluated,
        peak_bytes=peak_bytes(),
        trained_bytes=trials * trained_bytes(backbone.shape, method, training),
        missing_tokens=full - tried,
    )


@dataclass
class _Taken:
    """Time and tokens of the steps that count, and time of the last evaluation."""

    train_seconds: float = 0.0
    tokens: int = 0
    evaluation_seconds: float = 0.0
    so_far: float = 0.0

    def count(self, event: Event, so_far: float) -> None:
        """Adds what the fleet took since the event before; `so_far` is what it took in all, checkpoints left out."""
        seconds, self.so_far = so_far - self.so_far, so_far
        match event:
            case Stepped() if event.step > WARM_STEPS + 1:
                self.train_seconds += seconds
                self.tokens += event.tokens
            case Evaluated() if event.step == STEPS:
                self.evaluation_seconds += seconds
            case Failed():
                raise BackboneError(f"a few steps were tried, and {event.reason}")


def _batch_size(backbone: Backbone, method: Method, training: TrainingConfig, data: FleetData) -> int:
    texts = data.splits["train"]
    per_text = float(data.tokens.lengths[texts].mean()) * training_operations(backbone.shape, method)
    fit = training.batch_size if shares_packs(backbone) else int(MOST_OPERATIONS / max(per_text, 1.0))
    return max(1, min(training.batch_size, fit, len(texts)))


def _few_texts(backbone: Backbone, data: FleetData, batch: int) -> FleetData:
    """Returns the data with a few texts: the batches of the probe's steps, and two passes of an evaluation."""
    train = data.splits["train"]
    wanted = np.concatenate(list(_batches(backbone, data, batch)))
    texts = np.empty_like(wanted)
    texts[epoch_order(SEED, 0, len(wanted))] = wanted
    held_out = [data.splits[split] for split in ("validation", "test") if len(data.splits.get(split, ()))]
    known = [texts for texts in held_out if are_known(data.labels[texts])]
    splits: dict[SplitName, NDArray[np.int64]] = {
        "train": texts,
        "validation": _of_tokens(data.tokens, (known or [train])[0], 2 * tokens_in_one_pass()),
    }
    return FleetData(data.tokens, data.labels, splits)


def _batches(backbone: Backbone, data: FleetData, batch: int) -> Iterator[NDArray[np.int64]]:
    """Yields each step's batch: after the warm-up the largest of the first epoch, else those nearest the mean."""
    batches = _first_epoch(data.splits["train"], batch)
    costs = _costs(backbone, data.tokens, batches)
    usual = np.argsort(np.abs(costs - costs.mean()), kind="stable")
    for step in range(STEPS):
        yield batches[np.argmax(costs) if step == WARM_STEPS else usual[step % len(usual)]]


def largest_batch(backbone: Backbone, data: FleetData, batch: int) -> int:
    """Returns the tokens of the largest batch of the first epoch, padding included where there is any."""
    return int(_costs(backbone, data.tokens, _first_epoch(data.splits["train"], batch)).max())


def _first_epoch(train: NDArray[np.int64], batch: int) -> NDArray[np.int64]:
    """Returns the texts `(batches, batch)` of the first epoch in whole batches; one of all texts if they are fewer."""
    order = train[epoch_order(SEED, 0, len(train))]
    size = min(batch, len(order))
    return order[: len(order) // size * size].reshape(-1, size)


def _costs(backbone: Backbone, tokens: Tokens, batches: NDArray[np.int64]) -> NDArray[np.int64]:
    """Returns the tokens `(batches,)` that each batch has in the backbone's layout."""
    costs: NDArray[np.int64] = tokens.lengths[batches].sum(axis=1)
    if backbone.layout == "padded":
        costs = tokens.longest_sequences[batches].max(axis=1) * tokens.sequence_counts[batches].sum(axis=1)
    return costs


def _of_tokens(tokens: Tokens, texts: NDArray[np.int64], limit: int) -> NDArray[np.int64]:
    """Returns texts drawn at random that hold about `limit` tokens, all of them if they hold fewer."""
    drawn = texts[epoch_order(SEED, 1, len(texts))]
    held = np.cumsum(tokens.lengths[drawn])
    return drawn[: int(np.searchsorted(held, limit)) + 1]
