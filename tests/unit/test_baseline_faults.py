"""Baselines that go wrong: what fails their trial, and what ends more than that."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fleetune.data.arrays import GivenTexts
from fleetune.data.dataset import Dataset
from fleetune.engine.baselines import run_baseline
from fleetune.engine.events import Evaluated, Event, Failed, Finished
from fleetune.engine.trial import TrialSpec
from fleetune.errors import RunTakenOverError, StorageError
from fleetune.lab.check import check
from fleetune.lab.recipe import load_recipe
from fleetune.lab.results import load_results
from fleetune.lab.runner import run
from fleetune.methods.baseline import Fitted
from fleetune.methods.majority import Majority
from fleetune.methods.tfidf import TfIdf
from tests.tiny import spec


def texts() -> Dataset:
    zeros = np.zeros(9, dtype=np.int64)
    splits: Any = {"train": np.arange(3), "validation": np.arange(3, 5), "test": np.arange(5, 9)}
    return Dataset("d", list("abcdefghi"), None, ["no", "yes"], np.arange(9) % 2, splits, zeros, zeros, ["f"])


def gives(value: float, rows: int) -> Callable[..., Fitted]:
    """Returns a fit whose logits hold `value` where `rows` texts are asked for."""

    def logits(given: GivenTexts) -> np.ndarray:
        values = np.ones((len(given.first), 2))
        if len(given.first) == rows:
            values[0, 1] = value
        return values

    return lambda *_: Fitted(logits)


def events_of(trial: TrialSpec) -> list[Event]:
    return list(run_baseline(trial, texts()))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300])
@pytest.mark.parametrize(("rows", "split"), [(2, "validation"), (4, "test")])
def test_logits_that_are_no_numbers_fail_the_baseline(
    value: float, rows: int, split: str, monkeypatch: pytest.MonkeyPatch
):
    assert [type(event) for event in events_of(spec("majority"))] == [Evaluated, Finished]
    monkeypatch.setattr(Majority, "fit", gives(value, rows))
    (failed,) = events_of(spec("majority"))
    assert isinstance(failed, Failed) and failed.reason == f"logits on {split} became infinite or NaN"


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory"), ValueError("no")])
def test_what_is_the_baselines_own_fails_it(error: Exception, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Majority, "fit", raising(error))
    (failed,) = events_of(spec("majority"))
    assert isinstance(failed, Failed) and type(error).__name__ in failed.reason


ENDING = [
    torch.AcceleratorError("CUDA error: an illegal memory access", 700),
    RunTakenOverError("gone"),
    StorageError("full"),
    OSError(5, "Input/output error", "f"),
]


@pytest.mark.parametrize("error", ENDING, ids=lambda error: type(error).__name__)
def test_what_is_not_the_baselines_own_is_not_taken_for_its_failure(error: Exception, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Majority, "fit", raising(error))
    with pytest.raises(type(error)):
        events_of(spec("majority"))


def test_a_fault_of_the_disk_in_a_baseline_stops_the_run(
    write_recipe: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    recipe = load_recipe(write_recipe(method=[{"kind": "tfidf"}]))
    with monkeypatch.context() as patch:
        patch.setattr(TfIdf, "fit", raising(OSError(28, "No space left on device", "/tmp/cache")))
        with pytest.raises(StorageError, match="/tmp/cache is full"):
            run(recipe, tmp_path / "run")
    assert run(recipe, tmp_path / "run").done == 1


def test_a_missing_file_of_a_baselines_own_fails_it_alone(
    write_recipe: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    recipe = load_recipe(write_recipe(method=[{"kind": "tfidf"}, {"kind": "majority"}]))
    monkeypatch.setattr(TfIdf, "fit", raising(FileNotFoundError(2, "No such file or directory", "/words.txt")))
    summary = run(recipe, tmp_path / "run")
    assert (summary.done, summary.failed) == (1, 1)
    (reason,) = [trial.reason for trial in load_results(tmp_path / "run").trials if trial.status == "failed"]
    assert reason is not None and reason.startswith("FileNotFoundError: ") and "/words.txt" in reason
    assert len(check(recipe).forecasts) == 2


def raising(error: Exception) -> Callable[..., Any]:
    def fit(*_: Any) -> Any:
        raise error

    return fit
