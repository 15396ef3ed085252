"""A run that is killed, as often as one likes, ends as one that was not, byte by byte."""

from __future__ import annotations

import importlib.util
import itertools
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fleetune.engine.events import Finished
from fleetune.engine.fleet import Fleet
from fleetune.engine.generation import FolderCheckpoints
from fleetune.methods import all_methods, get, is_baseline
from tests.killed_runs import Place, assert_same, outcome, run_with_kills
from tests.peft_types import WORKS
from tests.tiny import random_data, spec, tiny_backbone

DATA = random_data(train=32)
TRAINING: dict[str, Any] = {
    "epochs": 2,
    "batch_size": 8,
    "precision": "fp32",
    "learning_rate": 1e-2,
    "seeds": 1,
    "metric": "log_loss",
    "evaluate_every": 3,
}
FLEET: list[dict[str, Any]] = [
    {"kind": "lora", "rank": 2, "dropout": 0.2, "gradient_accumulation_steps": 2},
    {"kind": "lora", "name": "fails", "learning_rate": 1e30, "max_grad_norm": 0.0},
    {"kind": "bitfit", "learning_rate": 0.3, "early_stopping_patience": 1},
    {"kind": "adalora", "epochs": 1.5},
]
"""Four trials over two cores, then three, two and one: who is left over is divided between them."""
ALONE: list[dict[str, Any]] = [
    {"kind": "full", "optimizer": "adafactor", "learning_rate": 1e-3, "epochs": 1},
    {"kind": "peft", "type": "loha", "options": {"rank_dropout": 0.3}, "epochs": 1},
    {"kind": "tfidf"},
]
"""Each is a fleet of its own."""
PLACES = ["notice", "micro-step", "fsync", "replace", "commit", "committed", "removal"]


@pytest.fixture
def check(write_recipe: Callable[..., Path], tmp_path: Path) -> Callable[..., list[dict[str, Any]]]:
    """Returns what runs a recipe once through and once killed, compares the ends, and returns what was said."""

    def run_both(kills: list[Place], every: int = 3, threads: int = 2, **tables: Any) -> list[dict[str, Any]]:
        recipe = write_recipe(**{"training": TRAINING, "method": FLEET, **tables})
        whole, *said = run_with_kills(recipe, tmp_path, kills, every, threads)
        assert [tuple(one["killed"]) for one in said[:-1]] == kills, "the run was over too soon"
        got, expected = outcome(tmp_path / "killed"), outcome(tmp_path / "whole")
        assert_same(got, expected)
        assert whole["done"] + whole["failed"] == len(expected["trials"])
        return [whole, *said]

    return run_both


def test_a_run_that_is_killed_again_and_again_ends_as_one_that_was_not(check: Callable[..., Any]) -> None:
    whole, *_ = check([("micro-step", 6), ("notice", 12), ("micro-step", 7), ("fsync", 31)])
    assert (whole["done"], whole["failed"]) == (3, 1)


@pytest.mark.slow
def test_a_damaged_checkpoint_is_put_aside_and_the_end_is_the_same(check: Callable[..., Any], tmp_path: Path) -> None:
    methods = [{"kind": "lora", "rank": 2}, {"kind": "head"}, {"kind": "norm"}]
    kills: list[Place] = [("micro-step", 13), ("damage", 0), ("micro-step", 2), ("damage", 3)]
    *_, first, _, second, last = check(kills, every=2, method=methods)
    db = sqlite3.connect(tmp_path / "killed" / "ledger.sqlite")
    noted = [detail for (detail,) in db.execute("SELECT detail FROM events WHERE kind = 'checkpoint damaged'")]
    db.close()
    assert [f"trials/{detail.split()[0]}" for detail in noted] == [first["path"], second["path"]]
    assert len(last["lines"]) == 1 and "is damaged" in last["lines"][0]
    aside = list((tmp_path / "killed" / "trials").glob("*/quarantine/*"))
    assert len(aside) == 2


@pytest.mark.slow
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("every", [1, 4])
def test_killed_at_each_kind_of_place(check: Callable[..., Any], place: str, every: int) -> None:
    # Of these a run has too few to be killed five times at them.
    are_few = place == "removal" or (place, every) == ("committed", 4)
    numbers = (3, 2, 7) if are_few else (3, 2, 7, 5, 11)
    check([(place, number) for number in numbers], every, method=[*FLEET, *ALONE])


@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_every_method_that_shares_the_backbone(check: Callable[..., Any], threads: int) -> None:
    kinds = [kind for kind in all_methods() if not is_baseline(kind) and get(kind).shares_backbone]
    methods = [{"kind": kind, "gradient_accumulation_steps": 1 + number % 2} for number, kind in enumerate(kinds)]
    check([("micro-step", 5), ("notice", 90), ("micro-step", 4), ("committed", 2)], threads=threads, method=methods)


STATES: dict[str, dict[str, Any]] = {
    **{kind: {"kind": kind} for kind, method in all_methods().items() if not method.installs and not is_baseline(kind)},
    **{
        f"full {name}": {"kind": "full", "optimizer": name} for name in ("adafactor", "paged_adamw_32bit", "adamw_8bit")
    },
    "full sgd": {"kind": "full", "optimizer": "sgd", "momentum": 0.9},
    "lora adafactor": {"kind": "lora", "optimizer": "adafactor"},
    "lora dora": {"kind": "lora", "settings": {"dora": True, "dropout": 0.1}},
    **{f"peft {kind}": {"kind": "peft", "settings": {"type": kind, "options": own}} for kind, own in WORKS.items()},
}
QUICK = ("adalora", "full adafactor", "lora", "peft LOHA", "peft OFT", "prefix", "vera")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in sorted(STATES)]
)
def test_a_checkpoint_holds_all_of_a_trials_state(tmp_path: Path, name: str) -> None:
    """Stopped in the middle of an optimizer step, twice; the fleets after it know the files alone."""
    if name.endswith("8bit") and importlib.util.find_spec("bitsandbytes") is None:
        pytest.skip("bitsandbytes is not installed")
    fields = {"max_steps": 9, "gradient_accumulation_steps": 3, "evaluate_every": 4, "learning_rate": 1e-2}
    one = spec(**{**fields, "metric": "log_loss", **STATES[name]})

    def train(folder: Path, *stops: int) -> None:
        for stop in (*stops, 10**9):
            turns = itertools.count()
            backbone, store = tiny_backbone(precision="fp32"), FolderCheckpoints(folder)
            events = Fleet(backbone, [one], DATA, store, is_stopped=lambda: next(turns) == stop).train()  # noqa: B023
            ended = [isinstance(event, Finished) for event in events]
            assert any(ended) is (stop == 10**9)

    train(tmp_path / "whole")
    train(tmp_path / "stopped", 4, 10)
    assert contents(tmp_path / "stopped") == contents(tmp_path / "whole")


def contents(folder: Path) -> dict[str, bytes]:
    """Returns every file by its path."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
