"""Forecasts follow from what a probe took, and fleets are no larger than memory allows."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fleetune.engine import footprint
from fleetune.engine.config import TrainingConfig
from fleetune.engine.fleet import Fleet, FleetData
from fleetune.engine.footprint import MOST_TRIALS, Candidate, activation_bytes, fits, trained_bytes
from fleetune.engine.forecast import GROWTH, forecast_by_probe
from fleetune.engine.lanes import lanes
from fleetune.engine.micro_batches import MicroBatches, Part
from fleetune.engine.probe import STEPS, WARM_STEPS, Probe, largest_batch, probe, side_by_side
from fleetune.engine.trial import Trial
from fleetune.errors import BackboneError
from fleetune.lab.check import check
from fleetune.lab.plan import even_parts
from fleetune.lab.recipe import load_recipe
from fleetune.methods import get
from fleetune.runtime import device
from tests.tiny import random_data, spec, tiny_backbone

SHAPE = tiny_backbone("bert").shape
GIB = 2**30


@pytest.mark.parametrize("kind", ["lora", "bitfit", "full"])
def test_a_probe_trains_for_real_and_leaves_nothing(kind: str):
    backbone, data = tiny_backbone("bert"), random_data()
    before = {name: value.clone() for name, value in backbone.model.state_dict().items()}
    trials = side_by_side(backbone, 5)
    found = probe(backbone, get(kind)(), TrainingConfig(batch_size=4, class_weights="balanced"), data, trials)
    assert found.train_seconds > 0 and found.evaluation_seconds > 0 and found.peak_bytes > 0
    own = trained_bytes(backbone.shape, get(kind)(), TrainingConfig())
    assert (found.trials, found.missing_tokens, found.trained_bytes) == (trials, 0, trials * own)
    after = backbone.model.state_dict()
    assert before.keys() == after.keys() and all(value.equal(after[name]) for name, value in before.items())


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_a_probe_tries_the_largest_batch_once_all_that_is_kept_exists(monkeypatch: pytest.MonkeyPatch, layout: str):
    data, backbone = random_data(), tiny_backbone("bert", layout=layout)
    seen: list[int] = []
    real = MicroBatches._parts

    def watched(batches: MicroBatches, running: list[Trial]) -> list[Part]:
        lengths = data.tokens.lengths[running[0].next_batch()]
        seen.append(int(lengths.sum() if layout == "packed" else lengths.max() * len(lengths)))
        assert len(seen) != WARM_STEPS + 1 or running[0].best is not None
        return real(batches, running)

    monkeypatch.setattr(MicroBatches, "_parts", watched)
    probe(backbone, get("lora")(), TrainingConfig(batch_size=4), data, 2)
    assert len(seen) == STEPS and seen[WARM_STEPS] == max(seen) == largest_batch(backbone, data, 4)


def test_few_texts_and_no_validation_can_be_probed():
    data, backbone = random_data(), tiny_backbone("bert")
    few = FleetData(data.tokens, data.labels, {"train": data.splits["train"][:3]})
    found = probe(backbone, get("lora")(), TrainingConfig(batch_size=16), few, 1)
    assert found.train_seconds > 0 and found.missing_tokens == 0
    assert largest_batch(backbone, few, 16) == int(data.tokens.lengths[few.splits["train"]].sum())


def test_a_probe_whose_loss_is_no_number_says_so(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(MicroBatches, "_loss", lambda *arguments: torch.tensor(float("nan"), requires_grad=True))
    with pytest.raises(BackboneError, match="the loss became nan at step 1"):
        probe(tiny_backbone("bert"), get("lora")(), TrainingConfig(batch_size=4), random_data(), 2)


def found_probe(**changes: float) -> Probe:
    values = {"trials": 1, "peak_bytes": GIB, "trained_bytes": 0, "missing_tokens": 0, **changes}
    return Probe(train_seconds=2.0, evaluation_seconds=0.5, **values)  # type: ignore[arg-type]


def test_seconds_follow_tokens_epochs_and_evaluations():
    data = random_data()
    lengths, splits = data.tokens.lengths, data.splits

    def seconds(**changes: object) -> float:
        training = TrainingConfig.model_validate({"epochs": 3, "batch_size": 4, **changes})
        return forecast_by_probe(found_probe(), SHAPE, get("lora")(), training, data).seconds

    train, validation = float(lengths[splits["train"]].sum()), float(lengths[splits["validation"]].sum())
    test = float(lengths[splits["test"]].sum()) if "test" in splits else 0.0
    steps = math.ceil(len(splits["train"]) / 4)
    assert seconds() == pytest.approx(2.0 * 3 * train + 0.5 * (3 * validation + test))
    assert seconds(max_steps=steps, epochs=9) == pytest.approx(2.0 * train + 0.5 * (validation + test))
    every_step = 2.0 * train + 0.5 * (steps * validation + test)
    assert seconds(epochs=1, evaluate_every=1) == pytest.approx(every_step)


@pytest.mark.parametrize("trials", [1, 2])
def test_memory_counts_a_trial_once_and_batches_larger_than_the_probes(trials: int):
    data, training = random_data(), TrainingConfig(batch_size=4)

    def peak(rank: int, missing: int) -> int:
        small = trained_bytes(SHAPE, get("lora")(rank=1), training)
        found = found_probe(trials=trials, trained_bytes=trials * small, missing_tokens=missing)
        return forecast_by_probe(found, SHAPE, get("lora")(rank=rank), training, data).peak_bytes

    own = {rank: trained_bytes(SHAPE, get("lora")(rank=rank), training) for rank in (1, 64)}
    growth = GROWTH[device().type]
    assert peak(1, 0) == int(growth * (GIB - (trials - 1) * own[1]))
    assert peak(64, 0) - peak(1, 0) == pytest.approx(growth * (own[64] - own[1]), abs=1)
    assert own[64] > own[1]
    more = growth * trials * 100 * activation_bytes(SHAPE, "auto")
    assert peak(1, 100) - peak(1, 0) == pytest.approx(more, abs=1)


@given(st.integers(1, 80), st.integers(20, 40), st.sampled_from(["lora", "bitfit", "full"]))
def test_fleets_fit_and_more_memory_never_means_smaller_ones(trials: int, bits: int, kind: str):
    candidates = [Candidate(get(kind)(), TrainingConfig(batch_size=8), 64)] * trials

    def largest(available: int) -> int:
        parts = even_parts(candidates, lambda fleet: fits(SHAPE, fleet, available))
        assert sum(len(part) for part in parts) == trials
        assert all(len(part) == 1 or fits(SHAPE, part, available) for part in parts)
        return max(len(part) for part in parts)

    assert largest(2**bits) <= largest(2 ** (bits + 1)) <= MOST_TRIALS[device().type]


def test_a_fleet_needs_what_its_trials_train():
    lora = [Candidate(get("lora")(), TrainingConfig(), 64)] * 4
    bytes_of_four = 4 * trained_bytes(SHAPE, get("lora")(), TrainingConfig())
    enough = next(2**bits for bits in range(10, 50) if fits(SHAPE, lora, 2**bits))
    assert enough * footprint.ROOM >= bytes_of_four and not fits(SHAPE, lora, int(bytes_of_four * 0.9))


def test_lanes_work_side_by_side(monkeypatch: pytest.MonkeyPatch):
    backbone = tiny_backbone("bert")
    monkeypatch.setattr("fleetune.engine.probe.shares_packs", lambda backbone: False)
    assert [side_by_side(backbone, trials) for trials in (1, 100)] == [1, lanes().count]
    monkeypatch.setattr("fleetune.engine.probe.shares_packs", lambda backbone: True)
    assert [side_by_side(backbone, trials) for trials in (1, 100)] == [1, 100]


def test_what_does_not_fit_is_not_tried_but_forecast_from_shapes(
    monkeypatch: pytest.MonkeyPatch, write_recipe: Callable[..., Path]
):
    recipe = load_recipe(write_recipe())
    whole = check(recipe)
    said: list[str] = []
    monkeypatch.setattr("fleetune.lab.forecasts.available_bytes", lambda: 0)
    monkeypatch.setattr("fleetune.lab.check.available_bytes", lambda: 0)
    monkeypatch.setattr("fleetune.lab.check.used_bytes", lambda: 0)
    found = check(recipe, said.append)
    assert not any("steps" in line for line in said) and found.forecasts.keys() == whole.forecasts.keys()
    assert all(one.seconds > 0 and one.peak_bytes > 0 for one in found.forecasts.values())
    assert any("GiB, more than the 0.0 GiB there are" in line for line in found.warnings)
    assert not any("there are" in line for line in whole.warnings)


def test_memory_that_runs_out_in_a_probe_ends_no_check(
    monkeypatch: pytest.MonkeyPatch, write_recipe: Callable[..., Path]
):
    def too_large(*arguments: object) -> Probe:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("fleetune.lab.forecasts.probe", too_large)
    found = check(load_recipe(write_recipe()))
    assert all(one.seconds > 0 for one in found.forecasts.values())


def test_losses_are_those_without_a_probe_before():
    data, backbone = random_data(), tiny_backbone("bert")
    trial = spec("lora", 0, {"dropout": 0.2}, epochs=1)

    def losses() -> list[float]:
        return [event.loss for event in Fleet(backbone, [trial], data).train() if hasattr(event, "loss")]

    before = losses()
    probe(backbone, trial.method, trial.training, data, 2)
    assert before and np.array_equal(before, losses())
