"""Who is measured, and what one turn of each returns."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

from benchmarks.inputs import Inputs
from benchmarks.processes import train_in_processes
from benchmarks.trainer import Habits, TrainerSide
from benchmarks.workloads import MAX_TOKENS
from fleetune.engine.backbone import Backbone, load_backbone
from fleetune.engine.events import Evaluated, Failed, Finished, Stepped
from fleetune.engine.fleet import Fleet
from fleetune.engine.footprint import Candidate, fits
from fleetune.engine.generation import FolderCheckpoints
from fleetune.engine.trial import TrialSpec
from fleetune.lab.plan import even_parts
from fleetune.memory import available_bytes, begin_peak, peak_bytes, used_bytes
from fleetune.runtime import device, has_fast_bf16


@dataclass(frozen=True)
class Turn:
    """What a contender took for a workload once.

    Attributes:
        seconds: Training and evaluation of every trial.
        first_step_seconds: From the call that starts the first trial to the end of its first optimizer step.
        peak_bytes: Highest memory of the turn, loading included; of all its processes together.
        bytes_before: What this process held when the turn began.
        loss: Log loss on validation, mean over the trials.
    """

    seconds: float
    first_step_seconds: float
    peak_bytes: int
    bytes_before: int
    loss: float


def processes() -> int:
    """Returns how many processes a careful user runs at once."""
    return 4 if device().type == "cuda" else 2


def names() -> dict[str, str]:
    """Returns what each contender is, on this machine."""
    half = "bf16" if has_fast_bf16() else "fp32"
    return {
        "A": "peft + Trainer, fp32",
        "B": f"peft + Trainer, {half}, no saving",
        "C": "Fleetune",
        "C1": "Fleetune, one trial",
        "D": f"B in {processes()} processes",
    }


def take_turn(contender: str, inputs: Inputs) -> Turn:
    """Returns what `contender` took for `inputs`, with its memory apart from the others'."""
    begin_peak()
    before = used_bytes()
    turns: dict[str, Callable[[Inputs], Turn]] = {
        "A": lambda given: _one_by_one(given, Habits(bf16=False, saves=True)),
        "B": lambda given: _one_by_one(given, Habits(bf16=has_fast_bf16(), saves=False)),
        "C": _fleets,
        "C1": lambda given: _fleets(replace(given, trials=given.trials[:1])),
        "D": lambda given: _at_once(given, Habits(bf16=has_fast_bf16(), saves=False)),
    }
    return replace(turns[contender](inputs), bytes_before=before)


def _one_by_one(inputs: Inputs, habits: Habits) -> Turn:
    side = TrainerSide(inputs, habits)
    trained = [side.train(spec) for spec in inputs.trials]
    return Turn(
        seconds=sum(one.seconds for one in trained),
        first_step_seconds=trained[0].first_step_seconds,
        peak_bytes=peak_bytes(),
        bytes_before=0,
        loss=fmean(one.loss for one in trained),
    )


def _at_once(inputs: Inputs, habits: Habits) -> Turn:
    seconds, parts = train_in_processes(inputs, habits, processes())
    return Turn(
        seconds=seconds,
        first_step_seconds=min(part.trained[0].first_step_seconds for part in parts),
        peak_bytes=sum(part.peak_bytes for part in parts),
        bytes_before=0,
        loss=fmean(one.loss for part in parts for one in part.trained),
    )


def _fleets(inputs: Inputs) -> Turn:
    available = available_bytes()
    backbone = load_backbone(inputs.backbone, inputs.num_labels)
    if backbone.shape.head != inputs.shape.head:
        raise RuntimeError(f"Fleetune trains the head {list(backbone.shape.head)}, others {list(inputs.shape.head)}")
    with tempfile.TemporaryDirectory() as folder:
        fleets = [_fleet(backbone, fleet, inputs, Path(folder)) for fleet in divide_into_fleets(inputs, available)]
    return Turn(
        seconds=sum(seconds for seconds, _, _ in fleets),
        first_step_seconds=fleets[0][1],
        peak_bytes=peak_bytes(),
        bytes_before=0,
        loss=fmean(loss for _, _, losses in fleets for loss in losses.values()),
    )


def _fleet(
    backbone: Backbone, trials: Sequence[TrialSpec], inputs: Inputs, folder: Path
) -> tuple[float, float, dict[str, float]]:
    """Returns seconds, seconds to the first step and log loss by trial; the clock starts before the fleet is made."""
    losses: dict[str, float] = {}
    finished, first_step, started = 0, 0.0, time.perf_counter()
    for event in Fleet(backbone, trials, inputs.data, FolderCheckpoints(folder)).train():
        match event:
            case Stepped():
                first_step = first_step or time.perf_counter() - started
            case Evaluated():
                losses[event.trial] = event.metrics["log_loss"]
            case Failed():
                raise RuntimeError(f"{event.trial} failed: {event.reason}")
            case Finished():
                finished += 1
    seconds = time.perf_counter() - started
    if finished != len(trials):
        raise RuntimeError(f"{len(trials) - finished} of {len(trials)} trials did not finish")
    return seconds, first_step, losses


def divide_into_fleets(inputs: Inputs, available: int) -> list[tuple[TrialSpec, ...]]:
    """Returns the trials as the lab puts them into fleets: those that share the backbone together, others alone."""

    def fit(specs: Sequence[TrialSpec]) -> bool:
        fleet = [Candidate(spec.method, spec.training, MAX_TOKENS) for spec in specs]
        return fits(inputs.shape, fleet, available)

    together = even_parts([spec for spec in inputs.trials if spec.method.shares_backbone], fit)
    return together + [(spec,) for spec in inputs.trials if not spec.method.shares_backbone]
