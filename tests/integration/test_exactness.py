"""A trial gives the same numbers alone, in any company, and stopped and taken up again."""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fleetune.engine.checkpoint import load_checkpoint
from fleetune.engine.events import Failed, Finished, Stepped
from fleetune.engine.fleet import Fleet
from fleetune.engine.generation import FolderCheckpoints
from fleetune.engine.trial import TrialSpec
from tests.tiny import REPRESENTATIVE, learnable_data, mixed_specs, relative_difference, spec, tiny_backbone

TOLERANCE = {"float64": 1e-9, "fp32": 1e-4}
"""Relative to the largest value of a tensor, of a trial's losses, of its logits."""
STEPS = 100
DATA = learnable_data()
TRAINING: dict[str, Any] = {
    "max_steps": STEPS,
    "learning_rate": 3e-3,
    "evaluate_every": STEPS // 2,
    "metric": "log_loss",
    # Adam makes large steps of small gradients, of which rounding is a large part (all of it for a bias of all keys,
    # which softmax does not see); with a large epsilon it does not.
    "adam_epsilon": 1e-3,
}
Outcome = dict[str, NDArray[Any]]


def cases(*quick: tuple[str, str]) -> Any:
    """Returns every architecture in both precisions, all but `quick` marked as slow."""
    return pytest.mark.parametrize(
        ("architecture", "precision"),
        [
            pytest.param(architecture, precision, marks=() if (architecture, precision) in quick else pytest.mark.slow)
            for architecture in REPRESENTATIVE
            for precision in TOLERANCE
        ],
    )


def observe(
    specs: Sequence[TrialSpec], architecture: str, precision: str, stop_at: int | None = None
) -> dict[str, Outcome]:
    """Returns all that can be seen of each trial that finishes, by trial and name.

    Args:
        specs: The fleet.
        architecture: Of the backbone.
        precision: Of the backbone.
        stop_at: Step of the first trial at which the fleet is stopped, and then taken up by another.
    """
    seen: dict[str, Any] = defaultdict(lambda: defaultdict(list))
    by_id = {one.id: one for one in specs}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for limit in (None,) if stop_at is None else (stop_at, None):
            store, is_asked = FolderCheckpoints(folder), False
            backbone = tiny_backbone(architecture, precision=precision)
            fleet = Fleet(backbone, specs, DATA, store, is_stopped=lambda: is_asked)  # noqa: B023
            parameters = {one.id: trial.parameters for one, trial in zip(specs, fleet.trials, strict=True)}
            for event in fleet.train():
                outcome = seen[event.trial]
                if isinstance(event, Stepped):
                    outcome["losses"].append(event.loss)
                    outcome["gradient norms"].append(event.gradient_norm)
                    if event.step == STEPS // 2 + 1:
                        optimizer = fleet.trials[specs.index(by_id[event.trial])].optimizer.state()
                        outcome |= {f"optimizer/{name}": tensor.clone() for name, tensor in optimizer.items()}
                    is_asked = is_asked or (event.trial == specs[0].id and event.step == limit)
                elif isinstance(event, Finished):
                    outcome["end"] = [event.steps, event.best_step, event.stopped_early]
                    outcome |= {f"logits of {split}": values for split, values in event.predictions.items()}
                    outcome |= parameters[event.trial].state()
                    outcome |= stored("last", folder / event.trial / "last")
                    outcome |= stored("best", folder / event.trial / "best")
                elif isinstance(event, Failed):
                    outcome["failed"] = [event.step]
    return {
        trial: {name: np.asarray(values, dtype=np.float64) for name, values in outcome.items()}
        for trial, outcome in seen.items()
    }


def stored(label: str, folder: Path) -> dict[str, Any]:
    """Returns the tensors that a trial has left for its readers."""
    found = load_checkpoint(folder)
    return {} if found is None else {f"{label}/{name}": tensor for name, tensor in found[0].items()}


@cache
def alone(architecture: str, precision: str, number: int) -> Outcome:
    """Returns what trial `number` of `mixed_specs` gives in a fleet of one."""
    one = mixed_specs(architecture, **TRAINING)[number]
    return observe([one], architecture, precision)[one.id]


@cache
def together(architecture: str, precision: str) -> dict[str, Outcome]:
    """Returns what `mixed_specs` gives as one fleet."""
    return observe(mixed_specs(architecture, **TRAINING), architecture, precision)


def assert_same(got: Outcome, expected: Outcome, precision: str) -> None:
    assert got.keys() == expected.keys()
    for name, values in expected.items():
        is_logits = name.startswith("logits")
        # Finished trials hand out their logits in float32.
        tolerance = TOLERANCE[precision] + (2**-23 if is_logits else 0.0)
        assert got[name].shape == values.shape, name
        assert relative_difference(got[name], values) <= tolerance, name
        assert not is_logits or (got[name].argmax(axis=1) == values.argmax(axis=1)).all()


@cases()
def test_alone_equals_together(architecture: str, precision: str) -> None:
    fleet = together(architecture, precision)
    assert len(fleet) >= 8
    for number, one in enumerate(mixed_specs(architecture, **TRAINING)):
        outcome = fleet[one.id]
        assert len(outcome["losses"]) == STEPS
        assert any("optimizer" in name for name in outcome), "the optimizer's state is compared, too"
        assert_same(outcome, alone(architecture, precision, number), precision)


@cases()
def test_neighbours_that_fail_stop_early_or_come_first_change_nothing(architecture: str, precision: str) -> None:
    trials = mixed_specs(architecture, **TRAINING)
    compared = len({one.method.kind for one in trials})
    wide = {"target_modules": ("all-linear",)}
    absurd = {"float64": 1e200, "fp32": 1e30}[precision]
    failing = spec("lora", 90, wide, **{**TRAINING, "learning_rate": absurd, "max_grad_norm": 0.0})
    # A decay that takes more than all away makes the weights larger at each step until they overflow.
    decay = {"float64": 2e6, "fp32": 2e4}[precision]
    failing_later = spec("head", 91, **{**TRAINING, "weight_decay": decay, "schedule": "constant"})
    stopping = spec("lora", 92, **{**TRAINING, "early_stopping_patience": 1, "evaluate_every": 2, "learning_rate": 0.1})
    ending = spec("ia3", 93, **{**TRAINING, "max_steps": 9})
    company = [failing, stopping, *reversed(trials[:compared]), failing_later, ending]
    outcomes = observe(company, architecture, precision)
    assert outcomes[failing.id]["failed"] < 5
    assert 5 < outcomes[failing_later.id]["failed"] < STEPS
    assert outcomes[stopping.id]["end"][2]
    for number, one in enumerate(trials[:compared]):
        assert_same(outcomes[one.id], alone(architecture, precision, number), precision)


@cases()
def test_a_resumed_fleet_goes_on_as_if_never_stopped(architecture: str, precision: str) -> None:
    resumed = observe(mixed_specs(architecture, **TRAINING), architecture, precision, stop_at=37)
    for trial, expected in together(architecture, precision).items():
        assert_same(later(resumed[trial]), later(expected), precision)


@cases(("bert", "fp32"))
def test_full_fine_tuning_repeats_and_resumes(architecture: str, precision: str) -> None:
    one = spec("full", **{**TRAINING, "learning_rate": 1e-3})
    first = observe([one], architecture, precision)[one.id]
    assert len(first["losses"]) == STEPS
    for stop_at in (None, 37):
        again = observe([one], architecture, precision, stop_at)[one.id]
        assert_same(later(again), later(first), precision)


def later(outcome: Outcome) -> Outcome:
    """Returns the outcome without the first half of its steps: of the step that is stopped, nothing may be heard."""
    return outcome | {name: outcome[name][-STEPS // 2 :] for name in ("losses", "gradient norms")}
