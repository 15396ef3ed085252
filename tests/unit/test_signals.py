"""What a signal does to a real process: at once, after the step, after a while, or the second time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(os.name == "nt", reason="signals of a POSIX system")

PROCESS = """
import sys, time
from pathlib import Path
from fleetune.lab import signals
from fleetune.lab.folder import RunFolder

grace, deferring, steps = float(sys.argv[2]), sys.argv[3] == "deferring", int(sys.argv[4])
signals.GRACE_SECONDS = grace
try:
    with signals.StopRequest(RunFolder(Path(sys.argv[1]))) as stop:
        if not deferring:
            print("here", flush=True)
            time.sleep(600)
        with stop.between_steps():
            print("here", flush=True)
            while stop.signal_number is None or steps > 0:
                time.sleep(0.01)
                steps -= stop.signal_number is not None
        raise stop.interruption()
except signals.RunInterrupted as error:
    print(error, file=sys.stderr)
    sys.exit(error.exit_code)
"""
FOREVER = 10**9


def started(folder: Path, grace: float, mode: str, steps: int) -> subprocess.Popen[str]:
    # Whoever started the tests may ignore a signal (nohup), and what they start inherits that.
    heard = f"import signal; signal.signal(signal.SIGHUP, signal.SIG_DFL)\n{PROCESS}"
    arguments = [sys.executable, "-c", heard, str(folder), str(grace), mode, str(steps)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(
        arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True
    )
    assert process.stdout is not None and process.stdout.readline() == "here\n"
    return process


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "recipe.toml").touch()
    (tmp_path / "ledger.sqlite").touch()
    return tmp_path


@pytest.mark.parametrize(
    ("mode", "steps", "grace", "begins"),
    [
        ("at once", FOREVER, 500.0, "stopped; what was trained is saved"),
        ("deferring", 20, 500.0, "stopped; what was trained is saved"),
        ("deferring", FOREVER, 0.3, "stopped in the middle of a step"),
    ],
)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_one_signal_stops_and_says_how_to_go_on(
    mode: str, steps: int, grace: float, begins: str, number: signal.Signals, folder: Path
):
    process = started(folder, grace, mode, steps)
    process.send_signal(number)
    _, said = process.communicate(timeout=200)
    assert process.returncode == 128 + number
    first, last = said.splitlines()
    assert first.startswith(begins) and last == f"To go on type: fleetune run {folder / 'recipe.toml'}"


def test_a_second_signal_ends_at_once(folder: Path):
    process = started(folder, 500.0, "deferring", FOREVER)
    process.send_signal(signal.SIGTERM)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=0.5)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=200)
    assert process.returncode == 130 and said == ""


def test_a_signal_that_the_caller_ignores_ends_nothing(folder: Path):
    process = subprocess.Popen(
        [sys.executable, "-c", f"import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n{PROCESS}",
         str(folder), "500", "deferring", "5"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert process.stdout is not None and process.stdout.readline() == "here\n"
    process.send_signal(signal.SIGHUP)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=0.5)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=200)
    assert process.returncode == 143
