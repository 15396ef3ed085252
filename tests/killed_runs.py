"""Runs a recipe in processes that are killed at places given in advance, and shows what is left of it.

As a program it reads one JSON object from its standard input: `recipe`, `folder`, `threads`, `every` (a checkpoint is
due each so many micro-steps or evaluations) and `kills`, a list of places. First it runs the recipe through in
`folder/whole`. Then for each place it forks a process that runs it in `folder/killed` and dies there by SIGKILL; in the
end one runs to its end. A place is `[what, number]`: the process dies when `what` happens for the number-th time:
`notice`, `micro-step`, `fsync`, `replace`, `removal`, `commit` (before it) or `committed`. At `["damage", number]`
nothing runs: a bit of file `number` of the newest checkpoint is turned over.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

TIMES = ("seconds", "peak_bytes", "evaluation_seconds")
"""Columns of the ledger's trials that no two runs have in common."""
ROOT = Path(__file__).parents[1]

Place = tuple[str, int]


def run_with_kills(
    recipe: Path, folder: Path, kills: Sequence[Place], every: int = 3, threads: int = 2
) -> list[dict[str, Any]]:
    """Runs a recipe through, then killed at each place in turn; returns what each process said.

    All say `killed`: where, or null; those that came to the end also `lines` of notes, and numbers of trials.
    """
    order = {"recipe": str(recipe), "folder": str(folder), "kills": kills, "every": every, "threads": threads}
    done = subprocess.run(
        [sys.executable, "-m", "tests.killed_runs"],
        input=json.dumps(order), capture_output=True, text=True, check=False, cwd=ROOT, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def outcome(folder: Path) -> dict[str, Any]:
    """Returns what of a run must not hang on whether it was stopped: its files byte by byte, rows of its ledger."""
    files = {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted((folder / "trials").rglob("*"))
        if path.is_file() and "quarantine" not in path.parts
    }
    db = sqlite3.connect(folder / "ledger.sqlite")
    db.row_factory = sqlite3.Row
    try:
        tables: dict[str, list[Any]] = {
            table: [
                {name: row[name] for name in row.keys() if name not in ("attempt", *TIMES)}  # noqa: SIM118
                for row in db.execute(f"SELECT * FROM {table} ORDER BY 1, 2, 3")
            ]
            for table in ("trials", "steps", "metrics")
        }
        tables["artifacts"] = [
            tuple(row) for row in db.execute("SELECT path, sha256 FROM artifacts WHERE kind <> 'data' ORDER BY path")
        ]
        tables["left over"] = [tuple(row) for row in db.execute("SELECT * FROM generations")]
        tables["left over"] += [tuple(row) for row in db.execute("SELECT * FROM checkpoints")]
    finally:
        db.close()
    return {**tables, **files}


def assert_same(got: dict[str, Any], expected: dict[str, Any]) -> None:
    """Raises AssertionError, with the name of what differs, unless the outcomes are equal."""
    assert sorted(got) == sorted(expected)
    for name, value in expected.items():
        assert got[name] == value, name


def main() -> None:
    """Runs what the order on standard input says."""
    order = json.loads(sys.stdin.read())
    import torch

    torch.set_num_threads(1)
    _warm_up(order)
    torch.set_num_threads(order["threads"])
    folder = Path(order["folder"])
    for number, place in enumerate([None, *order["kills"], None]):
        if place is not None and place[0] == "damage":
            print(json.dumps({"killed": place, "path": _damage(folder / "killed", place[1])}))
            continue
        sys.stdout.flush()
        child = os.fork()
        if child == 0:
            _run(order, folder / ("killed" if number else "whole"), place)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        killed = os.WIFSIGNALED(status)
        assert killed or os.waitstatus_to_exitcode(status) == 0
        if killed:
            print(json.dumps({"killed": place}))
        elif place is not None:
            # The run was over before it came there.
            break


class _Enough(BaseException):
    """Ends the warm-up."""


def _warm_up(order: dict[str, Any]) -> None:
    """Runs to the first micro-step elsewhere: what is imported then, need not be by each process that is forked."""
    from fleetune.engine.micro_batches import MicroBatches
    from fleetune.lab.recipe import load_recipe
    from fleetune.lab.runner import run

    def stop(*_: object) -> None:
        raise _Enough

    # Not further: a process whose parent has run backward passes cannot run any.
    whole, MicroBatches.run = MicroBatches.run, stop  # type: ignore[method-assign,assignment]
    try:
        with tempfile.TemporaryDirectory() as folder, suppress(_Enough):
            run(load_recipe(Path(order["recipe"])), Path(folder) / "warm")
    finally:
        MicroBatches.run = whole  # type: ignore[method-assign]


def _damage(folder: Path, number: int) -> str:
    """Turns over a bit in a file of the newest checkpoint; returns its path in the folder."""
    db = sqlite3.connect(folder / "ledger.sqlite")
    newest = "SELECT path FROM checkpoints WHERE generation = (SELECT max(id) FROM generations) ORDER BY path"
    paths = [path for (path,) in db.execute(newest)]
    db.close()
    path = folder / paths[number % len(paths)]
    blob = bytearray(path.read_bytes())
    blob[-1] ^= 1
    path.write_bytes(bytes(blob))
    return paths[number % len(paths)]


def _run(order: dict[str, Any], folder: Path, place: Place | None) -> None:
    from fleetune.engine.cuts import Cuts
    from fleetune.engine.micro_batches import MicroBatches
    from fleetune.lab.checkpoints import FleetCheckpoints
    from fleetune.lab.ledger import Ledger
    from fleetune.lab.notices import Noted
    from fleetune.lab.recipe import load_recipe
    from fleetune.lab.runner import run

    turns, every = itertools.count(1), order["every"] if folder.name == "killed" else 10**9
    Cuts.is_due = property(lambda self: next(turns) % every == 0)  # type: ignore[assignment,method-assign]
    count = _Count(place)
    count.before(os, "fsync", "fsync")
    count.before(os, "replace", "replace")
    count.before(os, "unlink", "removal")
    count.before(Ledger, "_commit", "commit")
    count.before(MicroBatches, "run", "micro-step")
    count.after(FleetCheckpoints, "commit", "committed")
    lines: list[str] = []

    def watch(notice: Any) -> None:
        if isinstance(notice, Noted):
            lines.append(notice.text)
        count("notice")

    summary = run(load_recipe(Path(order["recipe"])), folder, watch)
    print(json.dumps({"killed": None, "lines": lines, "counts": count.seen, **summary.to_json()["trials"]}), flush=True)


class _Count:
    """Counts what happens, and kills this process at the place it was given."""

    def __init__(self, place: Place | None) -> None:
        self.place = place
        self.seen: dict[str, int] = {}

    def __call__(self, what: str) -> None:
        self.seen[what] = self.seen.get(what, 0) + 1
        if self.place is not None and [what, self.seen[what]] == list(self.place):
            os.kill(os.getpid(), signal.SIGKILL)

    def before(self, owner: Any, name: str, what: str) -> None:
        whole: Callable[..., Any] = getattr(owner, name)

        def counted(*given: Any, **named: Any) -> Any:
            self(what)
            return whole(*given, **named)

        setattr(owner, name, counted)

    def after(self, owner: Any, name: str, what: str) -> None:
        whole: Callable[..., Any] = getattr(owner, name)

        def counted(*given: Any, **named: Any) -> Any:
            result = whole(*given, **named)
            self(what)
            return result

        setattr(owner, name, counted)


if __name__ == "__main__":
    main()
