"""Files that are cut off, or of which one bit has changed: found out before they are used, and made again."""

from __future__ import annotations

import random
import shutil
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.faults.bench import Bench, Failures
from tests.faults.ending import Ending, read_ending
from tests.faults.shim import Action, Fault

OFFSETS = 200
PARTS = 8
SEED = 21


@dataclass(frozen=True)
class Damage:
    """One damage, drawn from its number.

    Attributes:
        number: What repeats it.
        folder: Of the run.
        files: The file is one of these, relative to the folder.
    """

    number: int
    folder: Path
    files: list[str]

    def do(self) -> str:
        """Damages the file, and returns what was done."""
        rng = random.Random(SEED * 1000 + self.number)
        name = self.files[self.number % len(self.files)]
        path = self.folder / name
        data = bytearray(path.read_bytes())
        offset = rng.randrange(len(data))
        if self.number % 3 == 0:
            path.write_bytes(data[:offset])
            return f"{name} cut off at {offset} of {len(data)}"
        bit = rng.randrange(8)
        data[offset] ^= 1 << bit
        path.write_bytes(data)
        return f"bit {bit} of byte {offset} of {name} changed"


def files_of(folder: Path, *patterns: str) -> list[str]:
    """Returns the files of a run that match, the empty ones left out."""
    found = {path for pattern in patterns for path in folder.glob(pattern) if path.is_file() and path.stat().st_size}
    return sorted(path.relative_to(folder).as_posix() for path in found)


@pytest.fixture(scope="module")
def half_run(bench: Bench, work: Path) -> Iterator[Path]:
    """Yields a run that was killed in the middle of training, to be copied."""
    folder = work / "half"
    bench.attempt(folder, Fault(Action.KILL_BEFORE, 3 * bench.events // 5))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def folded_run(half_run: Path, work: Path) -> Iterator[Path]:
    """Yields the run that was killed, its ledger's log, which has checksums, folded into the file, which has none."""
    folder = work / "folded"
    shutil.copytree(half_run, folder)
    with closing(sqlite3.connect(folder / "ledger.sqlite")) as ledger:
        ledger.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def whole_run(bench: Bench, work: Path) -> Iterator[Path]:
    """Yields a run that ended well, to be copied."""
    folder = work / "whole"
    bench.attempt(folder)
    yield folder
    shutil.rmtree(folder)


def damage(
    bench: Bench, run: Path, numbers: Iterable[int], check: Callable[[Bench, Path], None], *patterns: str
) -> Failures:
    """Damages one file of a copy of `run` for each number, and lets `check` run it again."""
    failures = Failures()
    for number in numbers:
        with bench.folder() as folder:
            shutil.copytree(run, folder)
            done = Damage(number, folder, files_of(folder, *patterns)).do()
            with failures.trying(f"number {number}: {done}"):
                check(bench, folder)
    return failures


def ends_the_same(bench: Bench, folder: Path) -> None:
    """Fails where the run does not end as if nothing had happened."""
    bench.check_end(folder, "damage", repeats=None)


def ends_the_same_or_loudly(bench: Bench, folder: Path) -> None:
    """Fails where the run passes over the damage and ends otherwise."""
    ended = bench.attempt(folder)
    if ended.code == 0:
        differences = read_ending(folder).differences(bench.reference[0])
        assert not differences, "it ended as if nothing had happened, but: " + "; ".join(differences)
    else:
        lines = ended.error.splitlines()
        assert ended.code in (1, 2) and 1 <= len(lines) <= 2 and "Traceback" not in ended.stderr, ended.stderr
        assert "ledger" in ended.error, ended.error


def ends_the_same_but_for_curves_or_loudly(bench: Bench, folder: Path) -> None:
    """Fails where the run passes over more than a changed number of a curve, which has no checksum before the end."""
    ended = bench.attempt(folder)
    if ended.code == 0:
        ending, expected = read_ending(folder), bench.reference[0]
        differences = ending.differences(expected)
        assert all(one.startswith(CURVES) for one in differences), "; ".join(differences)
        assert points(ending) == points(expected), "a point of a curve is lost, or one is too many"
    else:
        assert ended.is_loud and "ledger" in ended.error, ended.stderr


def points(ending: Ending) -> list[tuple[Any, ...]]:
    """Returns of which trials, steps and metrics there are numbers."""
    return [
        (row["trial"], row["step"], row.get("name")) for table in ("steps", "metrics") for row in ending.rows[table]
    ]


CURVES = ("metrics: ", "steps: ")
CHECKPOINTS = ("trials/*/last/*", "trials/*/best/*")
RESULTS = ("trials/**/*",)
INPUTS = ("data/*", "data/tokens/**/*", "recipe.toml", "ledger.lock")
LEDGER = ("ledger.sqlite", "ledger.sqlite-wal")


def test_some_damaged_checkpoints_are_not_used(bench: Bench, half_run: Path) -> None:
    damage(bench, half_run, range(3, 5), ends_the_same, *CHECKPOINTS).check()


def test_some_damaged_ledgers_are_no_wrong_result(bench: Bench, half_run: Path) -> None:
    damage(bench, half_run, range(2), ends_the_same_or_loudly, *LEDGER).check()


def test_some_damaged_results_are_made_again(bench: Bench, whole_run: Path) -> None:
    damage(bench, whole_run, range(2), ends_the_same, *RESULTS).check()


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("part", range(PARTS))
def test_damaged_checkpoints_are_not_used(bench: Bench, half_run: Path, part: int) -> None:
    damage(bench, half_run, range(part, OFFSETS, PARTS), ends_the_same, *CHECKPOINTS).check()


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("run", ["half_run", "whole_run"])
def test_a_damaged_ledger_is_no_wrong_result(bench: Bench, run: str, part: int, request: pytest.FixtureRequest) -> None:
    template: Path = request.getfixturevalue(run)
    damage(bench, template, range(part, OFFSETS // 2, PARTS), ends_the_same_or_loudly, *LEDGER).check()


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("part", range(PARTS))
def test_a_damaged_ledger_without_a_log_is_no_wrong_result(bench: Bench, folded_run: Path, part: int) -> None:
    numbers = range(part, OFFSETS // 2, PARTS)
    damage(bench, folded_run, numbers, ends_the_same_but_for_curves_or_loudly, *LEDGER).check()


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("part", range(PARTS))
def test_damaged_results_are_made_again(bench: Bench, whole_run: Path, part: int) -> None:
    damage(bench, whole_run, range(part, OFFSETS, PARTS), ends_the_same, *RESULTS).check()


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("part", range(PARTS))
def test_damaged_inputs_are_made_again(bench: Bench, half_run: Path, part: int) -> None:
    damage(bench, half_run, range(part, OFFSETS // 2, PARTS), ends_the_same, *INPUTS).check()
