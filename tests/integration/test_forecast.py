"""Forecasts follow from what a probe took, and fleets are no larger than memory allows."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleetune.engine import forecast
from fleetune.engine.config import TrainingConfig
from fleetune.engine.fleet import Fleet, FleetData, Part
from fleetune.engine.forecast import MOST_TRIALS, Candidate, activation_bytes, fits, forecast_trial, trained_bytes
from fleetune.engine.probe import STEPS, Probe, largest_batch, probe, side_by_side
from fleetune.engine.trial import Trial
from fleetune.lab.plan import even_parts
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
    assert found.train_seconds > 0 and found.evaluation_seconds > 0 and found.peak_bytes > 10**8
    assert found.batch_tokens == largest_batch(data, 4)
    after = backbone.model.state_dict()
    assert before.keys() == after.keys() and all(value.equal(after[name]) for name, value in before.items())


def test_a_probe_begins_with_the_largest_batch(monkeypatch: pytest.MonkeyPatch):
    data = random_data()
    seen: list[int] = []
    real = Fleet._parts

    def watched(fleet: Fleet, running: list[Trial]) -> list[Part]:
        seen.append(int(data.tokens.lengths[running[0].next_batch()[0]].sum()))
        return real(fleet, running)

    monkeypatch.setattr(Fleet, "_parts", watched)
    probe(tiny_backbone("bert"), get("lora")(), TrainingConfig(batch_size=4), data, 2)
    assert len(seen) == STEPS and seen[0] == max(seen) == largest_batch(data, 4)


def test_few_texts_and_no_validation_can_be_probed():
    data = random_data()
    few = FleetData(data.tokens, data.labels, {"train": data.splits["train"][:3]})
    assert probe(tiny_backbone("bert"), get("lora")(), TrainingConfig(batch_size=16), few, 1).train_seconds > 0


def test_seconds_follow_tokens_epochs_and_evaluations():
    data = random_data()
    lengths, splits = data.tokens.lengths, data.splits
    found = Probe(train_seconds=2.0, evaluation_seconds=0.5, batch_tokens=10**6, peak_bytes=GIB)
    method = get("lora")()

    def seconds(**changes: object) -> float:
        training = TrainingConfig.model_validate({"epochs": 3, "batch_size": 4, **changes})
        return forecast_trial(found, 1, SHAPE, method, training, data).seconds

    train, validation = float(lengths[splits["train"]].sum()), float(lengths[splits["validation"]].sum())
    test = float(lengths[splits["test"]].sum()) if "test" in splits else 0.0
    steps = math.ceil(len(splits["train"]) / 4)
    assert seconds() == pytest.approx(2.0 * 3 * train + 0.5 * (3 * validation + test))
    assert seconds(max_steps=steps, epochs=9) == pytest.approx(2.0 * train + 0.5 * (validation + test))
    every_step = 2.0 * train + 0.5 * (steps * validation + test)
    assert seconds(epochs=1, evaluate_every=1) == pytest.approx(every_step)


def test_memory_counts_a_trial_once_and_batches_larger_than_the_probes():
    data, training = random_data(), TrainingConfig(batch_size=4)
    own = trained_bytes(SHAPE, get("lora")(), "auto")
    whole = Probe(1.0, 1.0, largest_batch(data, 4), GIB)
    part = Probe(1.0, 1.0, largest_batch(data, 4) - 100, GIB)
    alone = forecast_trial(whole, 1, SHAPE, get("lora")(), training, data).peak_bytes
    of_two = forecast_trial(whole, 2, SHAPE, get("lora")(), training, data).peak_bytes
    more = forecast_trial(part, 1, SHAPE, get("lora")(), training, data).peak_bytes
    assert (alone, of_two) == (GIB, GIB - own)
    assert more - alone >= int(100 * activation_bytes(SHAPE, "auto"))


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
    bytes_of_four = 4 * trained_bytes(SHAPE, get("lora")(), "auto")
    enough = next(2**bits for bits in range(10, 50) if fits(SHAPE, lora, 2**bits))
    assert enough * forecast.ROOM >= bytes_of_four and not fits(SHAPE, lora, int(bytes_of_four * 0.9))


def test_several_trials_work_side_by_side():
    backbone = tiny_backbone("bert")
    assert side_by_side(backbone, 1) == 1
    assert 1 <= side_by_side(backbone, 100) <= 100


def test_losses_are_those_without_a_probe_before():
    data, backbone = random_data(), tiny_backbone("bert")
    trial = spec("lora", 0, {"dropout": 0.2}, epochs=1)

    def losses() -> list[float]:
        return [event.loss for event in Fleet(backbone, [trial], data).train() if hasattr(event, "loss")]

    before = losses()
    probe(backbone, trial.method, trial.training, data, 2)
    assert before and np.array_equal(before, losses())
