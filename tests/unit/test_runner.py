"""A run over a fake fleet: what is recorded, what is skipped, what one failure leaves alone."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import sqlite3
import time
import tomllib
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fleetune.compare.summary import compare
from fleetune.engine.events import Evaluated, Event, Failed, Finished, Stepped
from fleetune.errors import (
    BackboneError,
    DeviceError,
    MethodError,
    RecipeError,
    RunError,
    RunLockedError,
    StorageError,
    UserError,
)
from fleetune.lab import runner as runner_module
from fleetune.lab.executors.base import BackboneFacts, FleetJob, StartedFleet
from fleetune.lab.export import choose_trial
from fleetune.lab.ledger import Ledger, LedgerReader
from fleetune.lab.lock import RunLock
from fleetune.lab.notices import FleetOpened, Noted, Notice, RunOpened, Said
from fleetune.lab.predictions import read_predictions
from fleetune.lab.recipe import Recipe, load_recipe
from fleetune.lab.results import load_results
from fleetune.lab.runner import run
from fleetune.lab.signals import RunInterrupted
from fleetune.lab.status import read_status
from fleetune.lab.test_uses import log_scores
from fleetune.runtime import environment

STEPS = 4


class FakeExecutor:
    """Trains nothing: a trial's logits are right for `seed` in every ten texts more than half."""

    def __init__(self, faults: dict[str, Any] | None = None) -> None:
        self.faults = faults or {}
        self.jobs: list[list[str]] = []
        self.closed = 0

    def start(self, job: FleetJob) -> StartedFleet:
        self.jobs.append([spec.id for spec in job.specs])
        return StartedFleet(BackboneFacts("packed", "tried", "fp32", "h", ("a note",)), self._events(job))

    def _events(self, job: FleetJob) -> Iterator[Event]:
        try:
            running = list(job.specs)
            for step in range(1, STEPS + 1):
                for spec in list(running):
                    fault = self.faults.get(spec.method.kind)
                    if isinstance(fault, Exception) and step == 2:
                        raise fault
                    if fault == "nan" and step == 2:
                        running.remove(spec)
                        yield Failed(spec.id, 1, "the loss became nan at step 2")
                        continue
                    if callable(fault) and step == 2:
                        fault()
                    yield Stepped(spec.id, step, STEPS, step / STEPS, 1.0 / step, 1e-3, 1.0, 4, 40)
                    yield Evaluated(
                        spec.id, step, step / STEPS, {"accuracy": 0.5 + spec.seed / 10, "roc_auc": np.nan}, step == 2,
                        texts=len(job.data.splits["validation"]), seconds=0.5,
                    )  # fmt: skip
            for spec in running:
                made = self._predictions(job, spec.seed)
                yield Finished(
                    spec.id, STEPS, 2, False, 1.0, made,
                    evaluated_texts=len(made["test"]), evaluation_seconds=0.5, trained_tokens=STEPS * 40,
                )  # fmt: skip
        finally:
            self.closed += 1

    def _predictions(self, job: FleetJob, seed: int) -> dict[Any, Any]:
        result = {}
        for split in ("validation", "test"):
            labels = np.asarray(job.data.labels[job.data.splits[split]])
            right = np.arange(len(labels)) % 10 < 6 + seed
            result[split] = np.eye(job.num_labels, dtype=np.float32)[np.where(right, labels, 1 - labels)] * 3
        return result


@pytest.fixture
def recipe(write_recipe: Callable[..., Path]) -> Recipe:
    return load_recipe(write_recipe())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "runs" / "quick"


def test_a_run_leaves_what_the_design_names(recipe: Recipe, folder: Path):
    notices: list[Notice] = []
    summary = run(recipe, folder, notices.append, FakeExecutor())
    assert summary.to_json()["trials"] == {"done": 4, "failed": 0, "skipped": 0}
    for name in ("recipe.toml", "ledger.sqlite", "data/audit.json", "data/quarantine.csv", "data/tokens"):
        assert (folder / name).exists(), name
    assert len(list((folder / "trials").glob("*/predictions.parquet"))) == 4
    opened = [notice for notice in notices if isinstance(notice, RunOpened | FleetOpened)]
    assert len(opened) == 2 and isinstance(opened[0], RunOpened)

    results = load_results(folder)
    assert [(t.method, t.seed, t.status) for t in results.trials] == [
        ("lora", 0, "done"), ("lora", 1, "done"), ("head", 0, "done"), ("head", 1, "done"),
    ]  # fmt: skip
    first = results.trials[0]
    assert list(first.losses) == [(step, pytest.approx(1 / step)) for step in range(1, STEPS + 1)]
    assert [entry["best"] for entry in first.history] == [False, True, False, False]
    assert np.isnan(first.history[0]["metrics"]["roc_auc"])
    assert first.parameters == {"adapter": 512, "head": 66, "trainable": 578, "total": first.parameters["total"]}
    assert (first.layout, first.precision, first.notes, first.best_step) == ("packed", "fp32", ["a note"], 2)
    assert results.audits[0]["truncated"] == 0 and results.environment["packages"]["torch"]
    right = {seed: (np.arange(results.audits[0]["test"]) % 10 < 6 + seed).mean() for seed in (0, 1)}
    assert compare(results.trials).row("head").scores == pytest.approx(right)


def test_a_folder_with_other_files_is_left_alone(recipe: Recipe, folder: Path):
    folder.mkdir(parents=True)
    (folder / "thesis.txt").write_text("four years")
    with pytest.raises(RecipeError, match=r"holds no run, but other files, such as thesis\.txt"):
        run(recipe, folder, executor=FakeExecutor())
    assert [item.name for item in folder.iterdir()] == ["thesis.txt"]
    (folder / "thesis.txt").rename(folder.parent / "thesis.txt")
    assert run(recipe, folder, executor=FakeExecutor()).done == 4
    with pytest.raises(RecipeError, match="is a file"):
        run(recipe, folder.parent / "thesis.txt", executor=FakeExecutor())


def test_predictions_are_of_each_splits_texts_in_their_order(recipe: Recipe, folder: Path):
    run(recipe, folder, executor=FakeExecutor())
    trial = load_results(folder).trials[1]
    assert list(trial.predictions) == ["validation", "test"]
    labels, logits = trial.predictions["test"]
    assert logits.dtype == np.float32 and logits.shape == (len(labels), 2)
    assert (logits.argmax(axis=1) == labels).mean() == (np.arange(len(labels)) % 10 < 7).mean()


def test_running_again_trains_nothing_that_is_done(recipe: Recipe, folder: Path):
    run(recipe, folder, executor=FakeExecutor())
    again = FakeExecutor()
    summary = run(recipe, folder, executor=again)
    assert again.jobs == []
    assert summary.to_json()["trials"] == {"done": 0, "failed": 0, "skipped": 4}
    assert summary.texts_per_second is None
    frozen = run(load_recipe(folder / "recipe.toml"), folder, executor=again)
    assert frozen.skipped == 4


def test_one_trials_failure_is_recorded_and_the_others_go_on(recipe: Recipe, folder: Path):
    summary = run(recipe, folder, executor=FakeExecutor({"lora": "nan"}))
    assert summary.to_json()["trials"] == {"done": 2, "failed": 2, "skipped": 0}
    trials = load_results(folder).trials
    assert [(t.method, t.status, t.reason) for t in trials[:2]] == [
        ("lora", "failed", "the loss became nan at step 2")
    ] * 2
    assert [t.status for t in trials[2:]] == ["done", "done"]
    retried = FakeExecutor()
    assert run(recipe, folder, executor=retried).done == 2
    assert retried.jobs == [[t.id for t in trials[:2]]]


def test_a_fleet_that_breaks_down_leaves_other_fleets_alone(write_recipe: Callable[..., Path], folder: Path):
    methods = [{"kind": "full"}, {"kind": "head"}]
    recipe = load_recipe(write_recipe(method=methods))
    executor = FakeExecutor({"full": MemoryError("no memory left")})
    summary = run(recipe, folder, executor=executor)
    assert (summary.done, summary.failed, executor.closed) == (2, 2, 3)
    reasons = {t.reason for t in load_results(folder).trials if t.status == "failed"}
    assert reasons == {"MemoryError: no memory left"}


def faults() -> list[Any]:
    """Returns what a disk may do in the middle of a fleet, and what is said of it."""
    busy = sqlite3.OperationalError("database or disk is full")
    busy.sqlite_errorcode = sqlite3.SQLITE_FULL
    return [
        (OSError(errno.ENOSPC, "No space left on device"), "is full"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "quota"),
        (OSError(errno.EIO, "Input/output error"), "does not read or write"),
        (OSError(errno.EROFS, "Read-only file system", "x.partial"), "x.partial is on a disk that is read-only"),
        (busy, r"ledger\.sqlite is full"),
        (StorageError("the disk is gone.\nLook at it"), "the disk is gone"),
    ]


@pytest.mark.parametrize(("fault", "said"), faults())
def test_a_fault_of_the_disk_stops_the_run_and_fails_no_trial(
    fault: Exception, said: str, recipe: Recipe, folder: Path
):
    with pytest.raises(StorageError, match=said):
        run(recipe, folder, executor=FakeExecutor({"head": fault}))
    status = read_status(folder)
    assert not status.alive and status.counts == {"done": 0, "failed": 0, "running": 0, "pending": 4}
    assert status.attempts[-1]["outcome"] == "interrupted"
    assert run(recipe, folder, executor=FakeExecutor()).done == 4


@pytest.mark.parametrize("number", [errno.EACCES, errno.ENOENT])
def test_a_file_of_its_own_fails_a_trial_and_one_of_the_run_stops_it(number: int, recipe: Recipe, folder: Path):
    own = OSError(number, "no", "/elsewhere/module.bin")
    assert run(recipe, folder, executor=FakeExecutor({"head": own})).failed == 4
    of_run = OSError(number, "no", str(folder / "trials" / "state"))
    with pytest.raises(StorageError, match="trials/state"):
        run(recipe, folder, executor=FakeExecutor({"head": of_run}))


@pytest.mark.parametrize("name", ["write_predictions", "write_held_out"])
def test_a_full_disk_in_the_middle_of_a_file_stops_the_run_and_it_goes_on(
    name: str, recipe: Recipe, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    def full(path: Path, *_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", f"{path}.partial")

    executor = FakeExecutor()
    with monkeypatch.context() as patched:
        patched.setattr(runner_module, name, full)
        with pytest.raises(StorageError, match="is full"):
            run(recipe, folder, executor=executor)
    assert executor.closed == len(executor.jobs)
    assert read_status(folder).counts["pending"] == 4
    assert run(recipe, folder, executor=FakeExecutor()).done == 4


def test_a_full_disk_that_takes_not_even_the_end_of_the_attempt_is_said(
    recipe: Recipe, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    def full(ledger: Ledger, *_: Any) -> None:
        error = sqlite3.OperationalError("database or disk is full")
        error.sqlite_errorcode = sqlite3.SQLITE_FULL
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(Ledger, "_write_steps", full)
        patched.setattr(Ledger, "_check_token", lambda ledger: None)
        with pytest.raises(StorageError, match=r"ledger\.sqlite is full"):
            run(recipe, folder, executor=FakeExecutor())
    assert run(recipe, folder, executor=FakeExecutor()).done == 4


def test_a_network_is_refused_before_anything_is_made(recipe: Recipe, folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("fleetune.lab.filesystem.network_type", lambda place: "nfs4")
    with pytest.raises(UserError, match=r"network file system \(nfs4\)"):
        run(recipe, folder, executor=FakeExecutor())
    assert not folder.exists()


@pytest.mark.parametrize("copied", [False, True])
def test_a_run_goes_on_where_its_folder_has_gone(copied: bool, recipe: Recipe, folder: Path):
    with pytest.raises(RunInterrupted):
        run(recipe, folder, executor=FakeExecutor({"head": lambda: os.kill(os.getpid(), signal.SIGINT)}))
    place = folder.parent / "else where" / "q"
    place.parent.mkdir()
    if copied:
        shutil.copytree(folder, place)
        shutil.rmtree(folder)
    else:
        folder.rename(place)
    assert run(load_recipe(place / "recipe.toml"), place, executor=FakeExecutor()).done == 4
    assert load_results(place).trials[0].predictions["test"]
    assert not folder.exists()


def test_data_in_the_runs_own_folder_moves_with_it(write_recipe: Callable[..., Path], folder: Path):
    path = write_recipe()
    (folder / "data").mkdir(parents=True)
    (path.parent / "reviews.csv").rename(folder / "data" / "texts.csv")
    inside = load_recipe(path, [f"data.path={folder / 'data' / 'texts.csv'}"])
    run(inside, folder, executor=FakeExecutor())
    moved = folder.parent / "moved"
    folder.rename(moved)
    assert tomllib.loads((moved / "recipe.toml").read_text())["data"][0]["path"] == "data/texts.csv"
    again = FakeExecutor()
    assert run(load_recipe(moved / "recipe.toml"), moved, executor=again).skipped == 4 and not again.jobs


PHASES = {
    "reading the data": ("fleetune.lab.inputs.prepare", signal.SIGTERM),
    "finding the backbone": ("fleetune.lab.inputs.find_folder", signal.SIGINT),
    "freezing the recipe": ("fleetune.lab.opening._freeze_recipe", signal.SIGTERM),
    "tokenising": ("fleetune.lab.runner.tokens_for", signal.SIGHUP),
    "keeping held-out texts": ("fleetune.lab.runner.write_held_out", signal.SIGINT),
    "loading the backbone": ("tests.unit.test_runner.FakeExecutor.start", signal.SIGTERM),
}


@pytest.mark.parametrize(("place", "number"), PHASES.values(), ids=PHASES)
def test_a_signal_before_training_stops_at_once_and_the_run_starts_later(
    place: str, number: int, recipe: Recipe, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    def busy(*_: Any, **__: Any) -> None:
        os.kill(os.getpid(), number)
        time.sleep(100)

    if number == signal.SIGHUP:
        # Tests that run under nohup ignore it.
        signal.signal(number, signal.SIG_DFL)
    with monkeypatch.context() as patched:
        patched.setattr(place, busy)
        with pytest.raises(RunInterrupted, match="To go on type: ") as caught:
            run(recipe, folder, executor=FakeExecutor())
    assert caught.value.exit_code == 128 + number
    assert len(str(caught.value).splitlines()) == 2
    told = "fleetune run" if (folder / "recipe.toml").exists() else "the same command again"
    assert told in str(caught.value)
    assert signal.getsignal(number) == (signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    assert run(recipe, folder, executor=FakeExecutor()).done == 4


def test_what_a_signal_turns_into_in_other_code_fails_no_trial(recipe: Recipe, folder: Path):
    def interrupted() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        raise RuntimeError("a library was interrupted")

    with pytest.raises(RunInterrupted):
        run(recipe, folder, executor=FakeExecutor({"head": interrupted}))
    assert read_status(folder).counts["pending"] == 4


def test_an_ignored_signal_stays_ignored(recipe: Recipe, folder: Path):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        executor = FakeExecutor({"head": lambda: os.kill(os.getpid(), signal.SIGHUP)})
        assert run(recipe, folder, executor=executor).done == 4
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


class SmallMachine(FakeExecutor):
    """Has memory for so many trials."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most = most

    def _events(self, job: FleetJob) -> Iterator[Event]:
        if len(job.specs) > self.most:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        yield from super()._events(job)


@pytest.mark.parametrize(("most", "failed"), [(3, 0), (1, 0), (0, 4)])
def test_a_fleet_too_large_for_the_memory_is_halved(recipe: Recipe, folder: Path, most: int, failed: int):
    executor, lines = SmallMachine(most), []
    summary = run(
        recipe, folder, watch=lambda n: lines.append(n.text) if isinstance(n, Said) else None, executor=executor
    )
    assert (summary.done, summary.failed) == (4 - failed, failed)
    sizes = [len(job) for job in executor.jobs]
    assert sizes == {3: [4, 2, 2], 1: [4, 2, 1, 1, 2, 1, 1], 0: [4, 2, 1, 1, 2, 1, 1]}[most]
    assert "memory does not suffice for 4 trials together: they go on in two fleets" in lines


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_between_events_and_the_run_goes_on_later(recipe: Recipe, folder: Path, number: int):
    executor = FakeExecutor({"head": lambda: os.kill(os.getpid(), number)})
    with pytest.raises(RunInterrupted, match="To go on type: fleetune run") as caught:
        run(recipe, folder, executor=executor)
    assert caught.value.exit_code == 128 + number
    assert executor.closed == 1
    status = read_status(folder)
    assert not status.alive and status.counts["pending"] == 4
    assert status.attempts[-1]["outcome"] == "interrupted"
    assert status.trials[0].step == 2
    assert run(recipe, folder, executor=FakeExecutor()).done == 4
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_another_recipe_is_refused_and_nothing_is_touched(write_recipe: Callable[..., Path], folder: Path):
    recipe = load_recipe(write_recipe())
    run(recipe, folder, executor=FakeExecutor())
    before = read_status(folder).attempts
    other = load_recipe(write_recipe(), ["training.learning_rate=0.5"])
    with pytest.raises(RecipeError, match=r"learning_rate differs[^\n]*\n.*for a new run give another --out"):
        run(other, folder, executor=FakeExecutor())
    texts = recipe.base / "reviews.csv"
    texts.write_text(texts.read_text() + "something quite new,pos\n")
    with pytest.raises(RecipeError, match="data have changed since"):
        run(recipe, folder, executor=FakeExecutor())
    assert read_status(folder).attempts == before


def test_a_folder_at_work_is_refused(recipe: Recipe, folder: Path):
    folder.mkdir(parents=True)
    with RunLock(folder), pytest.raises(RunLockedError, match="fleetune status"):
        run(recipe, folder, executor=FakeExecutor())


class OtherBackbone(FakeExecutor):
    """Finds weights with another hash."""

    def start(self, job: FleetJob) -> StartedFleet:
        started = super().start(job)
        return replace(started, facts=replace(started.facts, model_hash="another"))


def test_weights_that_changed_since_the_run_began_are_refused(recipe: Recipe, folder: Path):
    with pytest.raises(RunInterrupted):
        run(recipe, folder, executor=FakeExecutor({"head": lambda: os.kill(os.getpid(), signal.SIGINT)}))
    with pytest.raises(BackboneError, match=r"has changed: its weights[^\n]*\nPut the model back"):
        run(recipe, folder, executor=OtherBackbone())
    assert read_status(folder).counts["failed"] == 0
    assert run(recipe, folder, executor=FakeExecutor()).done == 4
    assert set(load_results(folder).hashes) >= {"backbone"}


def test_a_tokenizer_that_changed_since_the_run_began_is_refused(
    recipe: Recipe, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    with pytest.raises(RunInterrupted):
        run(recipe, folder, executor=FakeExecutor({"head": lambda: os.kill(os.getpid(), signal.SIGINT)}))
    monkeypatch.setattr("fleetune.lab.runner.content_hash", lambda tokens: "another")
    with pytest.raises(BackboneError, match="its tokens that the tokenizer makes are not those"):
        run(recipe, folder, executor=FakeExecutor())


def test_a_machine_that_changed_since_the_last_start_is_told(
    recipe: Recipe, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    def said(executor: FakeExecutor) -> list[str]:
        notices: list[Notice] = []
        with suppress(RunInterrupted):
            run(recipe, folder, notices.append, executor)
        return [notice.text for notice in notices if isinstance(notice, Noted)]

    stopped = {"head": lambda: os.kill(os.getpid(), signal.SIGINT)}
    assert said(FakeExecutor(stopped)) == said(FakeExecutor(stopped)) == []
    real = environment()
    changed = {**real, "threads": 99, "packages": {**real["packages"], "torch": "0.1"}}
    monkeypatch.setattr("fleetune.lab.opening.environment", lambda: changed)
    (line,) = said(FakeExecutor(stopped))
    assert f"threads went from {real['threads']} to 99 and torch went from {real['packages']['torch']} to 0.1" in line
    assert said(FakeExecutor(stopped)) == [], "what has not changed again is not told again"
    assert said(FakeExecutor()) == [] and read_status(folder).counts["done"] == 4


def test_what_killed_processes_left_half_written_goes_at_the_next_start(recipe: Recipe, folder: Path):
    with pytest.raises(RunInterrupted):
        run(recipe, folder, executor=FakeExecutor({"head": lambda: os.kill(os.getpid(), signal.SIGINT)}))
    before = sorted((folder / "data").rglob("*"))
    (folder / "data" / "audit.json.123.partial").touch()
    (folder / "data" / "tokens" / "0a1b.xyz.partial").mkdir()
    (folder / "data" / "tokens" / "0a1b.xyz.partial" / "input_ids.npy").touch()
    assert run(recipe, folder, executor=FakeExecutor()).done == 4
    assert sorted((folder / "data").rglob("*")) == before


def test_bad_records_leave_the_files_of_a_run_that_is_there_alone(write_recipe: Callable[..., Path], folder: Path):
    path = write_recipe()
    run(load_recipe(path), folder, executor=FakeExecutor())
    before = (folder / "data" / "quarantine.csv").read_bytes()
    texts = path.parent / "reviews.csv"
    good = texts.read_text()
    texts.write_text(good + "".join(f"text {n},\n" for n in range(9)))
    with RunLock(folder), pytest.raises(UserError, match=r"bad-records\.csv"):
        run(load_recipe(path), folder, executor=FakeExecutor())
    assert len((folder / "bad-records.csv").read_text().splitlines()) == 10
    assert (folder / "data" / "quarantine.csv").read_bytes() == before
    texts.write_text(good)
    assert run(load_recipe(path), folder, executor=FakeExecutor()).skipped == 4


def test_bad_records_that_stop_a_run_are_all_listed_in_a_file(write_recipe: Callable[..., Path], folder: Path):
    path = write_recipe()
    texts = path.parent / "reviews.csv"
    texts.write_text(texts.read_text() + "".join(f"text {n},\n" for n in range(9)))
    with pytest.raises(Exception, match=r"quarantine\.csv"):
        run(load_recipe(path), folder, executor=FakeExecutor())
    assert len((folder / "data" / "quarantine.csv").read_text().splitlines()) == 10
    assert not (folder / "ledger.sqlite").exists()


def test_the_best_is_chosen_on_validation_by_configuration_then_by_seed(recipe: Recipe, folder: Path):
    run(recipe, folder, executor=FakeExecutor())
    results = load_results(folder)
    best = choose_trial(results, "best")
    assert (best.method, best.seed) == ("lora", 1)
    assert choose_trial(results, "head").seed == 1
    assert choose_trial(results, "head seed 0").seed == 0
    assert choose_trial(results, results.trials[0].id[:6]).id == results.trials[0].id
    with pytest.raises(Exception, match="did you mean 'lora'"):
        choose_trial(results, "lroa")


def test_multi_label_predictions_survive_the_file(tmp_path: Path):
    from fleetune.data.dataset import Dataset
    from fleetune.lab.predictions import write_predictions

    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, (9, 11)).astype(np.uint8)
    none = np.zeros(9, dtype=np.int64)
    splits: Any = {"train": np.arange(3), "validation": np.array([7, 8]), "test": np.arange(3, 7)}
    dataset = Dataset("d", ["x"] * 9, None, [str(n) for n in range(11)], labels, splits, none, none, ["f"])
    logits: Any = {
        "validation": rng.normal(size=(2, 11)).astype(np.float32),
        "test": rng.normal(size=(4, 11)).astype(np.float32),
    }
    write_predictions(tmp_path / "p.parquet", dataset, logits)
    read = read_predictions(tmp_path / "p.parquet")
    for split, values in logits.items():
        assert (read[split][0] == labels[splits[split]]).all()
        assert (read[split][1] == values).all() and read[split][1].dtype == np.float32


@pytest.mark.parametrize("place", [0, 1, 2])
def test_what_does_not_fit_one_fleet_stops_no_other(write_recipe: Callable[..., Path], folder: Path, place: int):
    methods: list[dict[str, Any]] = [{"kind": "full"}, {"kind": "full", "name": "later", "layer_decay": 0.5}]
    methods.insert(place, {"kind": "head"})
    recipe = load_recipe(write_recipe(method=methods))
    summary = run(recipe, folder, executor=FakeExecutor({"full": MethodError("it does not fit this backbone")}))
    assert (summary.done, summary.failed) == (2, 4)
    reasons = {trial.method: trial.reason for trial in load_results(folder).trials}
    assert reasons == {"head": None, "full": "it does not fit this backbone", "later": "it does not fit this backbone"}


def test_an_accelerator_that_fails_stops_the_run_and_fails_no_trial(write_recipe: Callable[..., Path], folder: Path):
    recipe = load_recipe(write_recipe(method=[{"kind": "full"}, {"kind": "head"}]))
    executor = FakeExecutor({"full": torch.AcceleratorError("CUDA error: device-side assert triggered\nand more")})
    with pytest.raises(DeviceError, match="device-side assert triggered") as stopped:
        run(recipe, folder, executor=executor)
    assert len(str(stopped.value).splitlines()) == 2
    assert len(executor.jobs) == 1, "what comes after it would fail without a fault"
    assert not {"failed", "done"} & {trial.status for trial in read_status(folder).trials}
    with LedgerReader(folder) as ledger:
        assert [row["outcome"] for row in ledger.rows("SELECT outcome FROM attempts")] == ["interrupted"]
    assert run(recipe, folder, executor=FakeExecutor()).done == 4


def test_where_nothing_fits_it_is_said_at_once(write_recipe: Callable[..., Path], folder: Path):
    other = load_recipe(write_recipe(method=[{"kind": "full"}]))
    with pytest.raises(MethodError, match="does not fit"):
        run(other, folder.parent / "alone", executor=FakeExecutor({"full": MethodError("it does not fit")}))


def with_sources(recipe: Path) -> None:
    """Gives the recipe's texts two columns of the user's, one of them with an empty cell."""
    path = recipe.parent / "reviews.csv"
    header, *lines = path.read_text().splitlines()
    sourced = [f"{line},{('web', 'mail')[n % 2]},{('en', '')[n % 5 == 0]}" for n, line in enumerate(lines)]
    path.write_text("\n".join([f"{header},source,language", *sourced]) + "\n")


DATA = {"path": "reviews.csv", "leaks": "drop", "split": {"validation": 0.2, "test": 0.2}}


def test_held_out_texts_stand_in_the_order_of_the_predictions(write_recipe: Callable[..., Path], folder: Path):
    path = write_recipe(data={**DATA, "slices": ["source", "language"]})
    with_sources(path)
    run(load_recipe(path), folder, executor=FakeExecutor())
    results = load_results(folder)
    assert list(results.texts) == ["reviews"]
    rows = (path.parent / "reviews.csv").read_text().splitlines()
    for split, (labels, _) in results.trials[0].predictions.items():
        held_out = results.texts["reviews"][split]
        assert len(held_out.texts) == len(labels) > 10
        assert held_out.tokens is not None
        for number, (text, place) in enumerate(zip(held_out.texts, held_out.places, strict=True)):
            file, _, line = place.rpartition(":")
            cells = rows[int(line) - 1].split(",")
            assert (file, text) == ("reviews.csv", cells[0])
            assert results.trials[0].label_names[labels[number]] == cells[1]
            assert held_out.slices["source"][number] == cells[2]
            assert held_out.slices["language"][number] == (cells[3] or "(empty)")
            assert held_out.tokens[number] == len(text.split()) + 2
    with LedgerReader(folder) as ledger:
        assert ledger.rows("SELECT * FROM artifacts WHERE path = 'data/held_out.parquet'")


def test_slices_and_cost_of_a_finished_run_may_change_and_train_nothing(
    write_recipe: Callable[..., Path], folder: Path
):
    path = write_recipe(data=DATA)
    with_sources(path)
    run(load_recipe(path), folder, executor=FakeExecutor())
    assert load_results(folder).texts["reviews"]["test"].slices == {}
    (folder / "data" / "held_out.parquet").unlink()
    assert dict(load_results(folder).texts) == {}
    again = FakeExecutor()
    later = load_recipe(write_recipe(data={**DATA, "slices": ["source"]}, compare={"cost": "seconds"}, track=[]))
    with_sources(path)
    assert run(later, folder, executor=again).skipped == 4 and again.jobs == []
    results = load_results(folder)
    assert set(results.texts["reviews"]["test"].slices["source"]) == {"web", "mail"}
    assert results.cost == "seconds"
    frozen = load_recipe(folder / "recipe.toml")
    assert (frozen.cost, frozen.data[0].slices) == ("seconds", ["source"])
    assert run(frozen, folder, executor=again).skipped == 4


def test_what_may_change_is_not_named_as_what_differs(write_recipe: Callable[..., Path], folder: Path):
    run(load_recipe(write_recipe(data=DATA)), folder, executor=FakeExecutor())
    changed = {"compare": {"cost": "seconds"}, "data": {**DATA, "slices": ["label"]}, "method": [{"kind": "head"}]}
    with pytest.raises(RecipeError, match=r"another recipe \(method\.0\.kind differs\)"):
        run(load_recipe(write_recipe(**changed)), folder, executor=FakeExecutor())
    with pytest.raises(RecipeError, match=r"another recipe \(data\.0\.curve differs\)"):
        run(load_recipe(write_recipe(data={**DATA, "curve": [0.5]})), folder, executor=FakeExecutor())


def test_a_damaged_file_of_texts_is_named_and_written_anew(recipe: Recipe, folder: Path):
    run(recipe, folder, executor=FakeExecutor())
    path = folder / "data" / "held_out.parquet"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(RunError, match=r"held_out\.parquet is damaged"):
        load_results(folder).texts["reviews"]
    with closing(sqlite3.connect(folder / "ledger.sqlite")) as db, db:
        db.execute("DELETE FROM meta WHERE key = 'seal'")
        db.execute("UPDATE attempts SET outcome = 'interrupted'")
    with pytest.raises(RunError, match=r"held_out\.parquet cannot be read"):
        load_results(folder).texts["reviews"]
    run(recipe, folder, executor=FakeExecutor())
    assert load_results(folder).texts["reviews"]["test"].texts


def test_sums_of_an_interrupted_trial_go_on(recipe: Recipe, folder: Path):
    executor = FakeExecutor({"head": lambda: os.kill(os.getpid(), signal.SIGINT)})
    with pytest.raises(RunInterrupted):
        run(recipe, folder, executor=executor)
    run(recipe, folder, executor=FakeExecutor())
    resumed = load_results(folder).trials
    run(recipe, folder.parent / "whole", executor=FakeExecutor())
    whole = load_results(folder.parent / "whole").trials
    assert [trial.operations for trial in resumed] == [trial.operations for trial in whole]
    query = "SELECT evaluation_texts, evaluation_seconds FROM trials ORDER BY position"
    with LedgerReader(folder) as ledger, LedgerReader(folder.parent / "whole") as other:
        rows, expected = ledger.rows(query), other.rows(query)
    texts = {split: len(labels) for split, (labels, _) in whole[0].predictions.items()}
    assert rows[0]["evaluation_texts"] == texts["test"] + texts["validation"] * STEPS
    # The first ones were made twice, and count once.
    assert [tuple(row) for row in rows] == [tuple(row) for row in expected]


def test_costs_are_those_of_the_plain_computation(recipe: Recipe, folder: Path):
    run(recipe, folder, executor=FakeExecutor())
    results = load_results(folder)
    lora, head = results.trials[0], results.trials[2]
    # Two layers: four products of width 32, two between 32 and 48.
    forward = 2 * 2 * (4 * 32 * 32 + 2 * 32 * 48)
    held = results.texts["reviews"]
    tokens = {split: int(np.asarray(one.tokens).sum()) for split, one in held.items()}
    read = STEPS * tokens["validation"] + tokens["test"]
    assert head.operations == pytest.approx(STEPS * 40 * forward + read * forward)
    assert lora.operations == pytest.approx(STEPS * 40 * 2 * forward + read * forward)
    assert lora.serving_operations is not None and head.serving_operations is not None
    # Rank 2 at query and value of both layers.
    assert lora.serving_operations / head.serving_operations == pytest.approx(1 + 2 * 512 / forward)
    assert lora.evaluation_texts_per_second == pytest.approx(
        (STEPS * len(held["validation"].texts) + len(held["test"].texts)) / (STEPS * 0.5 + 0.5)
    )
    assert (lora.entry, lora.train_share, lora.train_texts) == ("lora", 1.0, results.audits[0]["train"])


def test_a_curve_trains_on_parts_of_the_training_texts_alone(write_recipe: Callable[..., Path], folder: Path):
    path = write_recipe(data={**DATA, "curve": [0.25, 0.5]}, method=[{"kind": "lora", "rank": [2, 4], "seeds": 1}])
    jobs: list[FleetJob] = []

    class Listening(FakeExecutor):
        def start(self, job: FleetJob) -> StartedFleet:
            jobs.append(job)
            return super().start(job)

    run(load_recipe(path), folder, executor=Listening())
    parts = [set(job.data.splits["train"].tolist()) for job in jobs]
    assert parts[0] < parts[1] < parts[2]
    assert all(job.dataset.splits["train"] is job.data.splits["train"] for job in jobs)
    assert all((job.data.splits["test"] == jobs[0].data.splits["test"]).all() for job in jobs)
    results = load_results(folder)
    assert [(t.train_share, t.train_texts) for t in results.trials] == [
        (share, len(part)) for share, part in zip((0.25, 0.5, 1.0), parts, strict=True)
    ] * 2
    assert len({(trial.configuration, trial.train_share) for trial in results.trials}) == 6
    assert {trial.entry for trial in results.trials} == {"lora"}
    assert read_status(folder).trials[0].label == "lora r=2 seed 0 · 25 % of the texts"
    assert choose_trial(results, "best").train_share == 1.0
    assert choose_trial(results, "lora r=4 seed 0").train_share == 1.0
    assert choose_trial(results, results.trials[0].id).train_share == 0.25


def test_looks_at_test_scores_are_counted_where_there_are_some(recipe: Recipe, folder: Path):
    run(recipe, folder, executor=FakeExecutor({"lora": "nan"}))
    results = load_results(folder)
    assert results.test_uses == []
    seen = log_scores(log_scores(results, "compare", "f1_macro"), "report")
    assert [(use.command, use.metric, use.configurations) for use in seen.test_uses] == [
        ("compare", "f1_macro", 1),
        ("report", "accuracy", 1),
    ]
    assert load_results(folder).test_uses == seen.test_uses


def test_a_run_without_a_test_split_counts_no_look(write_recipe: Callable[..., Path], folder: Path):
    recipe = load_recipe(write_recipe(data={**DATA, "split": {"validation": 0.2, "test": 0.0}}))
    run(recipe, folder, executor=FakeExecutor())
    results = load_results(folder)
    assert log_scores(results, "compare") is results
    assert load_results(folder).test_uses == []
