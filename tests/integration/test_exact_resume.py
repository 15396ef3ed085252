"""A run that is killed, as often as one likes, ends as one that was not, byte by byte."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.killed_runs import Place, assert_same, outcome, run_with_kills

TRAINING: dict[str, Any] = {
    "epochs": 3,
    "batch_size": 8,
    "precision": "fp32",
    "learning_rate": 1e-2,
    "seeds": 1,
    "metric": "log_loss",
    "evaluate_every": 4,
}
FLEET: list[dict[str, Any]] = [
    {"kind": "lora", "rank": 2, "dropout": 0.2, "gradient_accumulation_steps": 2},
    {"kind": "bitfit", "learning_rate": 0.3, "early_stopping_patience": 1},
    {"kind": "adalora", "epochs": 2},
]
"""Three trials over two cores: one is left over, and divided between them; they end at different times."""
KILLS: list[Place] = [
    ("micro-step", 2),
    ("notice", 9),
    ("micro-step", 5),
    ("committed", 2),
    ("fsync", 40),
    ("replace", 25),
    ("commit", 13),
    ("removal", 5),
    ("micro-step", 11),
]


@pytest.fixture
def check(write_recipe: Callable[..., Path], tmp_path: Path) -> Callable[..., list[dict[str, Any]]]:
    """Returns what runs a recipe once through and once killed, compares the ends, and returns what was said."""

    def run_both(kills: list[Place], every: int = 3, **tables: Any) -> list[dict[str, Any]]:
        recipe = write_recipe(**{"training": TRAINING, "method": FLEET, **tables})
        (whole,) = run_with_kills(recipe, tmp_path / "whole", [], every=10**9)
        said = run_with_kills(recipe, tmp_path / "killed", kills, every)
        assert [tuple(one["killed"]) for one in said[:-1]] == kills
        assert_same(outcome(tmp_path / "killed"), outcome(tmp_path / "whole"))
        assert whole["done"] + whole["failed"] == len(outcome(tmp_path / "whole")["trials"])
        return [whole, *said]

    return run_both


def test_a_fleet_that_is_killed_again_and_again_ends_as_one_that_was_not(check: Callable[..., Any]) -> None:
    whole, *_ = check(KILLS)
    assert (whole["done"], whole["failed"]) == (3, 0)
