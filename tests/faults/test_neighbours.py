"""A trial that fails is recorded with its reason, and touches no other, whatever happens to the run."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path

import pytest

from tests.faults.bench import Bench, Failures
from tests.faults.conftest import write_fault_recipe
from tests.faults.ending import Ending, read_ending
from tests.faults.shim import Action, Fault

METHODS = [{"kind": "bitfit"}, {"kind": "lora", "rank": 2, "dropout": 0.1}, {"kind": "ia3"}]
EXPLODES = {"kind": "norm", "name": "explodes", "learning_rate": 1e38, "max_grad_norm": 0.0, "optimizer": "sgd"}


@pytest.fixture(scope="module")
def neighbours(bench: Bench, work: Path, tiny_bert: Path) -> tuple[Path, Ending]:
    """Returns a recipe with a trial that explodes, and how the run without it ends."""
    with bench.folder() as folder:
        healthy = write_fault_recipe(work, tiny_bert, "healthy.toml", method=METHODS)
        assert bench.attempt(folder, arguments=["run", str(healthy), "--out", str(folder)]).code == 0
        reference = read_ending(folder)
    mixed = [METHODS[0], EXPLODES, *METHODS[1:]]
    return write_fault_recipe(work, tiny_bert, "mixed.toml", method=mixed), reference


def kill_beside_a_failure(bench: Bench, neighbours: tuple[Path, Ending], numbers: Iterable[int]) -> Failures:
    """Kills the run with the trial that explodes at random events, and runs it to its end."""
    recipe, reference = neighbours
    failures = Failures()
    for number in numbers:
        rng = random.Random(number)
        with bench.folder() as folder, failures.trying(f"kills beside a failure, number {number}"):
            asked = ["run", str(recipe), "--out", str(folder)]
            for _ in range(number % 3):
                bench.attempt(folder, Fault(Action.KILL_BEFORE, rng.randrange(60, 600)), asked)
            ended = bench.attempt(folder, arguments=asked)
            assert ended.code == 1 and "1 trials failed" in ended.error, ended.stderr
            failed = _failed(folder)
            assert [reason[:19] for reason in failed.values()] == ["the loss became nan"], failed
            got = read_ending(folder).without(set(failed))
            differences = _without_places(got).differences(_without_places(reference))
            assert not differences, "; ".join(differences)
    return failures


def _failed(folder: Path) -> dict[str, str]:
    with closing(sqlite3.connect(folder / "ledger.sqlite")) as ledger:
        return dict(ledger.execute("SELECT id, reason FROM trials WHERE status = 'failed'").fetchall())


def _without_places(ending: Ending) -> Ending:
    """Returns it without the trials' places in their recipe, which one more trial moves."""
    kept = [{key: value for key, value in row.items() if key != "position"} for row in ending.rows["trials"]]
    return Ending({**ending.rows, "trials": kept}, ending.predictions, ending.tensors)


def test_a_trial_that_explodes_leaves_its_neighbours_alone(bench: Bench, neighbours: tuple[Path, Ending]) -> None:
    kill_beside_a_failure(bench, neighbours, range(1, 3)).check()


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("part", range(4))
def test_kills_beside_a_trial_that_explodes_touch_no_other(
    bench: Bench, neighbours: tuple[Path, Ending], part: int
) -> None:
    kill_beside_a_failure(bench, neighbours, range(part, 40, 4)).check()
