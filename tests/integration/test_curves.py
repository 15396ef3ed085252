"""A learning curve over data size, slices and costs: trained with a tiny model, interrupted, read back."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fleetune.cli.entry import run_command_line
from fleetune.compare.result import TrialResult
from fleetune.engine.events import Stepped
from fleetune.experiment import Experiment, run_recipe
from fleetune.lab.ledger import LedgerReader
from fleetune.lab.recipe import Recipe, load_recipe
from fleetune.lab.results import load_results
from fleetune.lab.runner import run
from fleetune.lab.signals import RunInterrupted

METHODS = [{"kind": "lora", "rank": 2}, {"kind": "head"}, {"kind": "majority"}, {"kind": "tfidf"}]
DATA: dict[str, Any] = {
    "path": "reviews.csv", "leaks": "drop", "split": {"validation": 0.2, "test": 0.2},
    "slices": ["size"], "curve": [0.25],
}  # fmt: skip


@pytest.fixture
def recipe(write_recipe: Callable[..., Path]) -> Recipe:
    return load_recipe(sized(write_recipe(data=DATA, method=METHODS, compare={"cost": "serving"})))


def sized(path: Path) -> Path:
    """Gives the texts of the recipe in `path` a column to slice by."""
    texts = path.parent / "reviews.csv"
    header, *lines = texts.read_text().splitlines()
    texts.write_text("\n".join([f"{header},size", *(f"{line},{size_of(line)}" for line in lines)]) + "\n")
    return path


def size_of(text: str) -> str:
    return "long" if len(text.split()) > 9 else "short"


def label(trial: TrialResult) -> tuple[str, float, int]:
    return trial.method, trial.train_share, trial.seed


def test_a_curve_and_slices_are_trained_and_read_back(recipe: Recipe, tmp_path: Path):
    folder = tmp_path / "run"
    summary = run(recipe, folder)
    assert (summary.done, summary.failed) == (2 * (2 * 2 + 2), 0)
    results = load_results(folder)
    by_label = {label(trial): trial for trial in results.trials}
    assert results.cost == "serving"
    train = results.audits[0]["train"]
    for (_, share, _), trial in by_label.items():
        assert trial.train_texts == round(share * train)
        assert trial.evaluation_texts_per_second and trial.evaluation_texts_per_second > 0
    few, every = by_label["lora", 0.25, 0], by_label["lora", 1.0, 0]
    assert few.losses and len(few.losses) < len(every.losses)
    assert few.operations and every.operations and 0 < few.operations < every.operations
    assert few.serving_operations == every.serving_operations
    head = by_label["head", 1.0, 0]
    assert head.serving_operations and every.serving_operations and head.serving_operations < every.serving_operations
    baseline = by_label["tfidf", 0.25, 0]
    assert (baseline.operations, baseline.serving_operations) == (None, None)
    assert baseline.parameters["trainable"] < by_label["tfidf", 1.0, 0].parameters["trainable"]
    with LedgerReader(folder) as ledger:
        fleets = ledger.rows("SELECT fleet, count(DISTINCT train_share) AS shares FROM trials GROUP BY fleet")
    assert all(row["shares"] == 1 for row in fleets)
    held_out = results.texts["reviews"]["test"]
    assert held_out.slices["size"] == [size_of(text) for text in held_out.texts]
    assert len(held_out.texts) == len(every.predictions["test"][0])


def test_costs_of_an_interrupted_curve_are_those_of_a_whole_one(recipe: Recipe, tmp_path: Path):
    stopped = False

    def stop_once(notice: object) -> None:
        nonlocal stopped
        if isinstance(notice, Stepped) and notice.step == 2 and not stopped:
            stopped = True
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(RunInterrupted):
        run(recipe, tmp_path / "stopped", stop_once)
    run(recipe, tmp_path / "stopped")
    run(recipe, tmp_path / "whole")
    stopped_trials, whole_trials = (load_results(tmp_path / name).trials for name in ("stopped", "whole"))
    for one, other in zip(stopped_trials, whole_trials, strict=True):
        assert (label(one), one.operations) == (label(other), other.operations)
        assert (one.history, one.train_texts) == (other.history, other.train_texts)


def test_whoever_looks_at_test_scores_is_in_the_ledger(
    write_recipe: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    folder = tmp_path / "run"
    run_recipe(load_recipe(sized(write_recipe(data=DATA, method=[{"kind": "head", "seeds": 1}]))), folder)
    for command in ("compare", "report", "export"):
        more = ["best", "--to", str(tmp_path / "bundle")] if command == "export" else []
        assert run_command_line([command, str(folder), *more, "--json"]) == 0
    Experiment(folder / "recipe.toml", out=folder).run()
    assert run_command_line(["status", str(folder)]) == 0
    assert "head seed 0 · 25 % of the texts" in capsys.readouterr().out
    uses = load_results(folder).test_uses
    assert [use.command for use in uses] == ["run", "compare", "report", "export", "python"]
    assert [use.configurations for use in uses] == [2, 2, 2, 1, 2]
    assert {use.metric for use in uses} == {"accuracy"}


def test_check_says_what_the_curve_adds(recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = str(tmp_path / "quick.toml")
    assert run_command_line(["check", path]) == 0
    shown = capsys.readouterr().out
    assert "the learning curve over data size adds 6 trials to 6" in shown
    assert "lora seed 1 · 25 % of the texts" in shown
    assert run_command_line(["check", path, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [trial["train_share"] for trial in told["trials"]].count(0.25) == 6
    seconds = {
        (trial["name"], trial["seed"], trial["train_share"]): trial["forecast"]["seconds"] for trial in told["trials"]
    }
    assert seconds["lora", 0, 0.25] <= seconds["lora", 0, 1.0]
