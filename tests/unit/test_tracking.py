"""What trackers are told of a run, and that nothing they do harms it; the trackers here are made up."""

from __future__ import annotations

import os
import signal
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fleetune.cli.progress import PlainLines, watching
from fleetune.engine.events import Evaluated, Stepped
from fleetune.errors import MissingExtraError, RecipeError
from fleetune.lab.notices import Noted, Notice, Said
from fleetune.lab.overrides import apply_overrides
from fleetune.lab.recipe import load_recipe, recipe_from, resolved
from fleetune.lab.results import load_results
from fleetune.lab.runner import run
from fleetune.lab.signals import RunInterrupted
from fleetune.lab.trackers import feed, names
from fleetune.lab.trackers.base import Ending, Picture, Point, TrackedRun, TrackedTrial, Tracker, flat
from fleetune.lab.trackers.points import POINTS_OF_A_TRIAL, Points
from fleetune.metrics import evaluate
from fleetune.report.figures.trial import trial_figures, trial_pictures
from tests.unit import synthetic_runs
from tests.unit.test_runner import STEPS, FakeExecutor

TABLES = {
    "trials": "id, name, settings, training, seed, parameters, status, reason, step, total_steps, best_step",
    "steps": "trial, step, attempt, epoch, loss, learning_rate, gradient_norm, texts, tokens",
    "metrics": "trial, step, name, value, epoch, best",
    "events": "attempt, trial, kind, detail",
}


class Listener(Tracker):
    """Keeps all that it is told."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.runs: list[TrackedRun] = []

    def open(self, run: TrackedRun) -> str:
        self.runs.append(run)
        return "it listens"

    def start(self, trial: TrackedTrial) -> None:
        self.calls.append(("start", trial.id, trial))

    def log(self, trial: str, points: Sequence[Point]) -> None:
        self.calls += [("point", trial, point) for point in points]

    def end(self, trial: str, ending: Ending) -> None:
        self.calls.append(("end", trial, ending))

    def close(self) -> None:
        self.calls.append(("close", None, None))

    def of(self, kind: str, trial: str) -> list[Any]:
        return [what for call, whose, what in self.calls if (call, whose) == (kind, trial)]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(feed, "SECONDS_BETWEEN_BATCHES", 0.02)
    return tmp_path / "runs" / "quick"


@pytest.fixture
def listen(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Returns what puts made-up trackers in the place of real ones."""

    def use(**trackers: Tracker) -> None:
        monkeypatch.setattr(feed, "require_packages", lambda names: None)
        monkeypatch.setattr(feed, "make_tracker", trackers.__getitem__)

    return use


def rows(folder: Path) -> dict[str, list[tuple[Any, ...]]]:
    with sqlite3.connect(folder / "ledger.sqlite") as ledger:
        return {
            table: sorted(ledger.execute(f"SELECT {columns} FROM {table}").fetchall(), key=repr)
            for table, columns in TABLES.items()
        }


def said(notices: list[Notice]) -> list[str]:
    return [notice.text for notice in notices if isinstance(notice, Said | Noted)]


def test_a_tracker_is_told_of_each_trial_from_start_to_end(write_recipe, folder, listen):
    listener = Listener()
    listen(wandb=listener)
    drawn = [Picture("loss", "Loss", b"png")]
    notices: list[Notice] = []
    run(load_recipe(write_recipe(), ["track=wandb"]), folder, notices.append, FakeExecutor(), draw=lambda trial: drawn)
    assert "wandb: it listens" in said(notices)
    assert [(one.folder, one.name) for one in listener.runs] == [(folder, "quick")]
    results = load_results(folder).trials
    assert len(results) == 4
    for result in results:
        (start,), (ending,) = listener.of("start", result.id), listener.of("end", result.id)
        assert flat(start.configuration)["training.learning_rate"] == 1e-2
        assert start.configuration["settings"] == result.settings and start.configuration["seed"] == result.seed
        assert start.configuration["parameters"] == result.parameters
        assert (start.configuration["layout"], start.configuration["data"]["name"]) == ("packed", "reviews")
        points = listener.of("point", result.id)
        assert [(p.step, p.values["train/loss"]) for p in points if "train/loss" in p.values] == list(result.losses)
        measured = [(p.step, p.values["validation/accuracy"]) for p in points if "validation/accuracy" in p.values]
        assert measured == [(one["step"], one["metrics"]["accuracy"]) for one in result.history]
        assert not any("validation/roc_auc" in point.values for point in points), "nan is no value"
        assert (ending.outcome, ending.reason, ending.step, ending.pictures) == ("done", None, STEPS, drawn)
        for split in ("validation", "test"):
            expected = evaluate(*result.predictions[split])["f1_macro"]
            assert ending.metrics[f"final/{split}/f1_macro"] == pytest.approx(expected)
        order = [call for call, whose, _ in listener.calls if whose == result.id]
        assert order[0] == "start" and order[-1] == "end"
    assert listener.calls[-1][0] == "close"


def test_a_failure_is_told_with_its_reason_and_a_second_try_repeats_nothing(write_recipe, folder, listen, monkeypatch):
    first, second = Listener(), Listener()
    recipe = load_recipe(write_recipe(), ["track=wandb"])
    monkeypatch.setenv("SOME_API_KEY", "nan at step")
    listen(wandb=first)
    run(recipe, folder, executor=FakeExecutor({"lora": "nan"}))
    lora = [trial for trial in load_results(folder).trials if trial.kind == "lora"]
    for trial in lora:
        (ending,) = first.of("end", trial.id)
        assert (ending.outcome, ending.reason, ending.step) == ("failed", "the loss became … 2", 1)
        assert not ending.metrics
    listen(wandb=second)
    run(recipe, folder, executor=FakeExecutor())
    assert {whose for call, whose, _ in second.calls if call == "start"} == {trial.id for trial in lora}
    assert [p.step for p in second.of("point", lora[0].id) if "train/loss" in p.values] == [1, 2, 3, 4]
    assert first.runs[0].key == second.runs[0].key


def test_an_interrupted_trial_is_told_so_and_goes_on_with_what_the_ledger_has(write_recipe, folder, listen):
    first, second = Listener(), Listener()
    listen(wandb=first)
    recipe = load_recipe(write_recipe(), ["track=wandb"])
    with pytest.raises(RunInterrupted):
        run(recipe, folder, executor=FakeExecutor({"head": lambda: os.kill(os.getpid(), signal.SIGTERM)}))
    trials = load_results(folder).trials
    assert {first.of("end", trial.id)[0].outcome for trial in trials} == {"interrupted"}
    before = [p.step for p in first.of("point", trials[0].id) if "train/loss" in p.values]
    assert before == [1, 2]

    class FromStepThree(FakeExecutor):
        def _events(self, job):
            yield from (e for e in super()._events(job) if getattr(e, "step", STEPS) > 2)

    listen(wandb=second)
    # The message of the interruption names the frozen recipe, so this is what is typed next.
    run(load_recipe(folder / "recipe.toml"), folder, executor=FromStepThree())
    for trial in load_results(folder).trials:
        told = [(p.step, p.values["train/loss"]) for p in second.of("point", trial.id) if "train/loss" in p.values]
        assert told == list(trial.losses)
        assert len(told) == STEPS or trial.kind == "head", "the head's second step was never trained"
        assert second.of("end", trial.id)[0].outcome == "done"
    third = Listener()
    listen(wandb=third)
    run(load_recipe(folder / "recipe.toml"), folder, executor=FakeExecutor())
    assert third.runs == [], "a run that is done is left alone"


class Broken(Tracker):
    """Raises wherever `method` is called; `error` is made anew each time."""

    def __init__(self, method: str, error: Callable[[], BaseException]) -> None:
        self.method, self.error, self.times = method, error, 0

    def _maybe(self, method: str) -> None:
        if method in (self.method, self.method.removeprefix("not ")):
            self.times += 1
            raise self.error()

    def open(self, run: TrackedRun) -> str:
        self._maybe("open")
        return "here"

    def start(self, trial: TrackedTrial) -> None:
        self._maybe("start")

    def log(self, trial: str, points: Sequence[Point]) -> None:
        self._maybe("log")

    def end(self, trial: str, ending: Ending) -> None:
        self._maybe("end")

    def close(self) -> None:
        self._maybe("close")
        raise OSError("closing failed, too")


@pytest.mark.parametrize(
    ("method", "error"),
    [
        ("open", lambda: ConnectionError("https://me:hunter22@track.example refused\nthe key s3cret-value")),
        ("start", lambda: SystemExit(3)),
        ("log", lambda: ValueError("no")),
        ("end", lambda: OSError("disk full")),
    ],
)
def test_a_tracker_that_raises_is_named_once_and_the_ledger_is_the_same(
    write_recipe, folder, listen, monkeypatch, method, error
):
    monkeypatch.setenv("WANDB_API_KEY", "s3cret-value")
    recipe = load_recipe(write_recipe())
    run(recipe, folder.parent / "plain", executor=FakeExecutor({"lora": "nan"}))
    healthy = Listener()
    listen(wandb=Broken(method, error), mlflow=healthy)
    notices: list[Notice] = []
    tracked = replace(recipe, track=("wandb", "mlflow"))
    summary = run(tracked, folder, notices.append, FakeExecutor({"lora": "nan"}))
    assert (summary.done, summary.failed) == (2, 2)
    assert rows(folder) == rows(folder.parent / "plain")
    complaints = [line for line in said(notices) if "wandb" in line and line != "wandb: here"]
    assert len(complaints) == 1 and "\n" not in complaints[0] and "training goes on" in complaints[0]
    assert not any(secret in complaints[0] for secret in ("hunter22", "s3cret"))
    assert len([call for call in healthy.calls if call[0] == "end"]) == 4, "another tracker is none the worse"


def test_a_tracker_that_hangs_holds_up_neither_training_nor_the_end(write_recipe, folder, listen, monkeypatch):
    monkeypatch.setattr(feed, "SECONDS_WITHOUT_PROGRESS", 0.3)
    monkeypatch.setattr(feed, "SECONDS_UNTIL_SAID", 0.1)
    release = threading.Event()

    class Hanging(Listener):
        def start(self, trial: TrackedTrial) -> None:
            release.wait(60)

    listen(wandb=Hanging())
    notices: list[Notice] = []
    began = time.monotonic()
    try:
        assert run(load_recipe(write_recipe(), ["track=wandb"]), folder, notices.append, FakeExecutor()).done == 4
        assert time.monotonic() - began < 40
    finally:
        release.set()
    assert said(notices)[-2:] == ["waiting for wandb", "wandb did not take everything in time; the ledger has it"]


def test_what_a_tracker_says_stays_on_the_screen(monkeypatch, capsys):
    PlainLines().take(Noted("wandb: no more goes there"))
    assert capsys.readouterr().err == "wandb: no more goes there\n"
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with watching() as watch:
        watch(Noted("mlflow: no more goes there"))
        watch(Said("loading"))
    assert "mlflow: no more goes there" in capsys.readouterr().err


def test_a_figure_that_cannot_be_drawn_costs_no_numbers(write_recipe, folder, listen):
    listener = Listener()
    listen(wandb=listener)
    notices: list[Notice] = []

    def draw(trial):
        raise RuntimeError("no fonts")

    run(load_recipe(write_recipe(), ["track=wandb"]), folder, notices.append, FakeExecutor(), draw=draw)
    endings = [what for call, _, what in listener.calls if call == "end"]
    assert len(endings) == 4 and all("final/test/accuracy" in ending.metrics for ending in endings)
    assert [line for line in said(notices) if "no fonts" in line] == ["trackers get no figures: RuntimeError: no fonts"]


def test_training_begins_when_the_trackers_are_ready(write_recipe, folder, listen):
    ready = threading.Event()

    class Slow(Listener):
        def open(self, run: TrackedRun) -> str:
            time.sleep(0.3)
            ready.set()
            return super().open(run)

    class Watchful(FakeExecutor):
        def start(self, job):
            assert ready.is_set(), "its imports would count as training time"
            return super().start(job)

    listen(wandb=Slow())
    assert run(load_recipe(write_recipe(), ["track=wandb"]), folder, executor=Watchful()).done == 4


@pytest.mark.parametrize(("trials", "steps"), [(1, 12_345), (200, 3_000), (5000, 777), (1, 9)])
def test_points_are_few_and_their_means_are_those_of_all_steps(trials: int, steps: int):
    points, losses = Points(trials), np.random.default_rng(0).random(steps)
    made = []
    for step, loss in enumerate(losses, start=1):
        event = Stepped("t", step, steps + 50, 0.1, float(loss), 1 / step, 2.0, 4, 40)
        made += [points.of(event), points.of(event)]
    made.append(points.rest("t"))
    kept = [point for point in made if point is not None]
    assert len(kept) <= min(steps, POINTS_OF_A_TRIAL) + 1 and len(kept) * trials <= 600_000
    assert kept[-1].step == steps and kept[-1].values["train/learning_rate"] == 1 / steps
    ends = [0, *(point.step for point in kept)]
    for point, start in zip(kept, ends, strict=False):
        assert point.values["train/loss"] == pytest.approx(losses[start : point.step].mean())
    assert points.rest("t") is None
    evaluated = Evaluated("t", steps, 1.0, {"f1": 0.5, "loss": float("inf")}, True)
    first, second = points.of(evaluated), points.of(evaluated)
    assert first is not None and first.values == {"validation/f1": 0.5}
    assert second is None


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("wanbd", "r.toml: track: there is no tracker 'wanbd'; did you mean 'wandb'?"),
        (["mlflow", "ml-flow"], "did you mean 'mlflow'?"),
        (["x"], "one of wandb, mlflow, tensorboard"),
        ([["wandb"]], "no tracker"),
        (["wandb", "wandb"], "stands there twice"),
        (True, "r.toml: track = True"),
        ({"wandb": 1}, "track = {'wandb': 1}"),
    ],
)
def test_a_wrong_tracker_is_refused(value: Any, expected: str):
    document = {"track": value, "data": {"path": "x"}, "backbone": {"model": "m"}, "method": [{"kind": "head"}]}
    with pytest.raises(RecipeError) as caught:
        recipe_from(document, Path("/base"), "r.toml")
    assert expected in str(caught.value) and len(str(caught.value).splitlines()) <= 2


def test_track_is_set_from_the_command_line_and_kept_when_resolved():
    document = {"data": {"path": "x"}, "backbone": {"model": "m"}, "method": [{"kind": "head"}]}
    for override, expected in [
        ("track=wandb", ("wandb",)),
        ('track=["mlflow", "tensorboard"]', ("mlflow", "tensorboard")),
        ("track=[]", ()),
    ]:
        made = recipe_from(apply_overrides({"track": "tensorboard", **document}, [override]), Path("/base"), "r.toml")
        assert made.track == expected
        assert recipe_from(resolved(made), Path("/elsewhere"), "recipe.toml").track == expected
        assert ("track" in resolved(made)) == bool(expected)
    with pytest.raises(RecipeError, match="table"):
        apply_overrides(document, ["epochs=1"])


def test_other_trackers_make_no_other_trials_and_are_frozen_in_turn(write_recipe, folder, listen):
    listen(wandb=Listener(), mlflow=Listener())
    path = write_recipe()
    run(load_recipe(path, ["track=wandb"]), folder, executor=FakeExecutor({"lora": "nan"}))
    assert load_recipe(folder / "recipe.toml").track == ("wandb",)
    assert run(load_recipe(path, ["track=mlflow"]), folder, executor=FakeExecutor()).skipped == 2
    assert load_recipe(folder / "recipe.toml").track == ("mlflow",)
    assert load_recipe(folder / "recipe.toml").methods[0].seeds == (0, 1)
    run(load_recipe(path), folder, executor=FakeExecutor())
    assert load_recipe(folder / "recipe.toml").track == ()
    with pytest.raises(RecipeError, match="learning_rate differs"):
        run(load_recipe(path, ["training.learning_rate=0.5", "track=wandb"]), folder, executor=FakeExecutor())


def test_a_tracker_that_is_not_installed_stops_the_run_before_it_begins(write_recipe, folder, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "mlflow", None)
    with pytest.raises(MissingExtraError, match=r"'mlflow', which is not installed.\nType: pip install 'fleetune\[tr"):
        run(load_recipe(write_recipe(), ["track=mlflow"]), folder, executor=FakeExecutor())
    assert not folder.exists()


def test_a_folder_of_its_name_is_no_installed_tracker(tmp_path, monkeypatch):
    (tmp_path / "wandbox").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(MissingExtraError):
        names.require_packages(["wandbox"])


def test_a_trials_figures_are_its_own():
    single = synthetic_runs.trial("lora", 0, ["a", "b", "c"])
    figures = trial_figures(single)
    assert list(figures) == ["loss", "confusion", "labels"]
    labels, _ = single.predictions["test"]
    counted = figures["confusion"].table
    assert counted["texts"].sum() == len(labels)
    right = counted[counted["true"] == counted["predicted"]]["texts"].sum()
    assert right == single.correct("test").sum()
    assert set(figures["loss"].table["split"]) == {"training", "validation"}
    multi = trial_figures(synthetic_runs.trial("lora", 0, ["a", "b", "c"], multi_label=True))
    assert list(multi) == ["loss", "labels"]
    unscored = trial_figures(replace(single, predictions={}, history=[]))
    assert list(unscored) == ["loss"]
    (picture,) = trial_pictures(replace(single, predictions={}, history=[]))
    assert picture.key == "loss" and picture.png.startswith(b"\x89PNG")
