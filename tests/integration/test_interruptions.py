"""Real processes over one run folder: stopped, killed, put to sleep, out of space. Nothing is lost or mixed."""

from __future__ import annotations

import hashlib
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from fleetune.cli.entry import run_command_line
from fleetune.lab.ledger import LedgerReader
from fleetune.lab.predictions import read_predictions
from fleetune.lab.status import read_status

pytestmark = [
    pytest.mark.skipif(os.name == "nt", reason="signals of a POSIX system"),
    pytest.mark.timeout(900),
]
PATIENCE_SECONDS = 600
"""Only a process that hangs is given up: a busy machine takes its time to start one."""

WriteRecipe = Callable[..., Path]
Captured = pytest.CaptureFixture[str]
LONG = {
    "epochs": 8, "evaluate_every": 5, "precision": "fp32", "learning_rate": 1e-3, "seeds": 1, "metric": "accuracy",
}  # fmt: skip
COMMAND = [sys.executable, "-m", "fleetune.cli", "run"]


def started(arguments: list[str]) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen(
        arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True
    )


@pytest.fixture
def begin() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Returns what starts a process, which does not outlive the test."""
    processes: list[subprocess.Popen[str]] = []

    def start(*arguments: str | Path) -> subprocess.Popen[str]:
        processes.append(started([str(argument) for argument in arguments]))
        return processes[-1]

    yield start
    for process in processes:
        if process.poll() is None:
            process.kill()
        process.communicate()


def wait_for_steps(folder: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        if (folder / "recipe.toml").exists() and any(trial.step > 2 for trial in read_status(folder).trials):
            return
        time.sleep(0.02)
    raise AssertionError(f"the run ended or did not begin: {process.communicate()}")


def put_to_sleep(process: subprocess.Popen[str], folder: Path) -> None:
    """Stops a process where it holds no lock of SQLite's: while it does, nobody can take its run over at all."""
    while True:
        os.kill(process.pid, signal.SIGSTOP)
        try:
            with closing(sqlite3.connect(folder / "ledger.sqlite", timeout=0.5, isolation_level=None)) as db:
                db.execute("BEGIN IMMEDIATE")
            return
        except sqlite3.OperationalError:
            os.kill(process.pid, signal.SIGCONT)
            time.sleep(0.05)


def files(folder: Path) -> dict[str, str]:
    """Returns a hash of each file but those of SQLite, which reading may touch, and of every row of the ledger."""
    found = {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "ledger.sqlite" not in path.name
    }
    with LedgerReader(folder) as ledger:
        tables = [row["name"] for row in ledger.rows("SELECT name FROM sqlite_master WHERE type = 'table'")]
        rows = {table: [tuple(row) for row in ledger.rows(f"SELECT * FROM {table}")] for table in tables}
    return found | {"rows": repr(rows)}


@pytest.mark.slow
def test_a_second_process_is_refused_while_the_first_sleeps_and_takes_over_when_it_is_dead(
    write_recipe: WriteRecipe, tmp_path: Path, begin: Callable[..., subprocess.Popen[str]], capsys: Captured
):
    recipe, run = write_recipe(training=LONG), tmp_path / "run"
    first = begin(*COMMAND, recipe, "--out", run)
    wait_for_steps(run, first)
    os.kill(first.pid, signal.SIGSTOP)
    capsys.readouterr()
    # However long it sleeps: an hour is no failure, and no reason to take its run.
    assert run_command_line(["run", str(recipe), "--out", str(run)]) == 1
    said = capsys.readouterr().err
    assert f"error: {run} is being written by process {first.pid} on " in said and "fleetune status" in said
    assert read_status(run).alive and len(read_status(run).attempts) == 1

    first.kill()
    first.wait()
    assert not read_status(run).alive and read_status(run).counts["pending"] == 2
    assert run_command_line(["run", str(recipe), "--out", str(run)]) == 0, capsys.readouterr().err
    status = read_status(run)
    assert status.counts["done"] == 2
    assert [attempt["outcome"] for attempt in status.attempts] == [None, "done"]


@pytest.mark.slow
def test_a_process_that_wakes_up_after_its_run_was_taken_over_changes_nothing(
    write_recipe: WriteRecipe, tmp_path: Path, begin: Callable[..., subprocess.Popen[str]], capsys: Captured
):
    recipe, run = write_recipe(training=LONG), tmp_path / "run"
    first = begin(*COMMAND, recipe, "--out", run)
    wait_for_steps(run, first)
    put_to_sleep(first, run)
    # Another folder with the same files, and without the lock: as on a system whose locks are forgotten.
    run.rename(tmp_path / "before")
    run.mkdir()
    for item in (tmp_path / "before").iterdir():
        item.rename(run / item.name)
    (run / "ledger.lock").unlink()
    assert run_command_line(["run", str(recipe), "--out", str(run)]) == 0, capsys.readouterr().err
    after = files(run)

    os.kill(first.pid, signal.SIGCONT)
    _, said = first.communicate(timeout=PATIENCE_SECONDS)
    assert first.returncode == 1, said
    assert said.splitlines()[-2:] == [
        f"error: {run} was taken over by another process; this one stops and writes nothing.",
        f"Look with: fleetune status {run}",
    ]
    assert "Traceback" not in said and "Exception ignored" not in said
    assert files(run) == after
    assert [attempt["outcome"] for attempt in read_status(run).attempts] == [None, "done"]


PHASE = """
import sys, time
from pathlib import Path
import fleetune.experiment, fleetune.engine.fleet, fleetune.lab.runner, fleetune.report.html, fleetune.lab.signals
from fleetune.cli.entry import run_command_line

recipe, run, module, name, grace = sys.argv[1:]
fleetune.lab.signals.GRACE_SECONDS = float(grace)

def busy(*arguments, **more):
    print("here", flush=True)
    time.sleep(600)

setattr(sys.modules[module], name, busy)
sys.exit(run_command_line(["run", recipe, "--out", run]))
"""
PHASES = {
    "an evaluation that does not end": ("fleetune.engine.fleet", "keep_logits", "0.5"),
    "a file of predictions": ("fleetune.lab.runner", "write_predictions", "0.5"),
    "the report": ("fleetune.report.html", "write_report", "300"),
}


@pytest.mark.slow
@pytest.mark.parametrize("phase", PHASES.values(), ids=PHASES)
def test_a_signal_ends_what_does_not_end_by_itself_and_says_how_to_go_on(
    phase: tuple[str, str, str],
    write_recipe: WriteRecipe,
    tmp_path: Path,
    begin: Callable[..., subprocess.Popen[str]],
    capsys: Captured,
):
    recipe, run = write_recipe(), tmp_path / "run"
    process = begin(sys.executable, "-c", PHASE, recipe, run, *phase)
    assert process.stdout is not None and process.stdout.readline() == "here\n"
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 143
    assert said.splitlines()[-1] == f"To go on type: fleetune run {run / 'recipe.toml'}" and "Traceback" not in said
    assert not read_status(run).alive
    assert run_command_line(["run", str(run / "recipe.toml")]) == 0, capsys.readouterr().err
    assert read_status(run).counts["done"] == 4 and (run / "report" / "index.html").exists()


LIMITED = """
import contextlib, io, json, resource, signal, sys
from pathlib import Path
import fleetune.experiment, fleetune.engine.fleet, fleetune.lab.runner, fleetune.report.html
from fleetune.cli.entry import run_command_line
from fleetune.lab.status import read_status

recipe, run = sys.argv[1:]
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
size, code = 256, 1
while code and size < 1 << 26:
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        code = run_command_line(["run", recipe, "--out", run])
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    failed = read_status(Path(run)).counts["failed"] if (Path(run) / "recipe.toml").exists() else 0
    print(json.dumps([size, code, failed, said.getvalue().partition("error: ")[2]]), flush=True)
    size *= 2
"""


@pytest.mark.slow
def test_files_that_the_system_cuts_short_stop_the_run_in_two_lines_and_it_goes_on(
    write_recipe: WriteRecipe, tmp_path: Path, begin: Callable[..., subprocess.Popen[str]], capsys: Captured
):
    """A limit on the size of files is met by each writer in turn: the system refuses to write on, as a full disk."""
    import json

    recipe, run, straight = write_recipe(), tmp_path / "run", tmp_path / "straight"
    process = begin(sys.executable, "-c", LIMITED, recipe, run)
    out, errors = process.communicate(timeout=PATIENCE_SECONDS)
    attempts = [json.loads(line) for line in out.splitlines()]
    assert len(attempts) > 3, errors
    for size, code, failed, said in attempts[:-1]:
        assert code == 1 and failed == 0, (size, code, failed, said)
        assert len(said.splitlines()) == 2 and str(tmp_path) in said, (size, said)
        assert "type the same command again" in said and "fault of fleetune" not in said, (size, said)
    assert attempts[-1][1:3] == [0, 0], attempts[-1]
    named = {said.splitlines()[0] for _, _, _, said in attempts[:-1]}
    assert len(named) > 1, named

    assert run_command_line(["run", str(recipe), "--out", str(straight)]) == 0, capsys.readouterr().err
    for trial in read_status(run).trials:
        ours, theirs = (read_predictions(one / "trials" / trial.id / "predictions.parquet") for one in (run, straight))
        for split, (labels, logits) in theirs.items():
            assert (ours[split][0] == labels).all()
            np.testing.assert_allclose(ours[split][1], logits, atol=1e-5)
