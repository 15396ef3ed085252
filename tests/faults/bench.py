"""Attempts at a small run, each a process of its own to which something happens."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tests.faults.ending import Ending, read_ending, steps_made
from tests.faults.shim import Event, Fault, read_log

HANG_SECONDS = 120.0
"""An attempt that takes longer is taken for one that hangs."""
REPEATS = 1
"""The recipe has a checkpoint after each micro-step, so a kill costs no more than the step under way."""
SHOWN, LINES = 20, 6


@dataclass(frozen=True)
class Attempt:
    """A process that works on a run's folder.

    Attributes:
        process: Its id.
        folder: The run's.
        output: Its output is in the files that begin so.
        removed: Folder with links to the files that it replaced or removed, named by the numbers of events.
    """

    process: int
    folder: Path
    output: Path
    removed: Path

    def signal(self, number: int) -> None:
        """Sends a signal; a process that has ended is left alone."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.process, number)


@dataclass(frozen=True)
class Ended:
    """How an attempt ended.

    Attributes:
        code: Its exit code; minus the signal's number where one killed it.
        stdout: What it printed.
        stderr: What it said.
        events: What it did to the run's folder.
        removed: Folder with links to the files that it replaced or removed, named by the numbers of events.
    """

    code: int
    stdout: str
    stderr: str
    events: list[Event]
    removed: Path

    @property
    def error(self) -> str:
        """What it said of the error that ended it, `error: ` left out."""
        return self.stderr.partition("error: ")[2].strip()

    @property
    def is_loud(self) -> bool:
        """Whether it failed with one or two lines, and no traceback."""
        lines = self.error.splitlines()
        return self.code == 1 and 1 <= len(lines) <= 2 and "Traceback" not in self.stderr


class Bench:
    """Starts attempts at one recipe, and knows how the run ends when nothing happens to it.

    Args:
        recipe: What is run.
        work: Folder for run folders and outputs.
        library: The shim.
    """

    def __init__(self, recipe: Path, work: Path, library: Path) -> None:
        self.recipe = recipe
        self.work = work
        self._made = self._started = 0
        environment = {**os.environ, "LD_PRELOAD": str(library), "PYTHONHASHSEED": "0", **ONE_THREAD}
        command = [sys.executable, "-m", "tests.faults.server", str(recipe), str(work / "warm")]
        self._said = work / "server.stderr"
        with self._said.open("w") as said:
            self._server = subprocess.Popen(
                command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said, text=True
            )
        assert self._read()["ready"], f"the run that warms up failed:\n{self._said.read_text()}"
        self.reference = self._run_through()
        """How the run ends when nothing happens to it, and what it does on the way."""

    def close(self) -> None:
        """Ends the server."""
        self._server.communicate(timeout=30)

    @cached_property
    def seconds(self) -> float:
        """How long a run takes now."""
        with self.folder() as folder:
            started = time.monotonic()
            self.attempt(folder)
            return time.monotonic() - started

    @contextmanager
    def folder(self) -> Iterator[Path]:
        """Yields the path of a new run's folder, which is not there yet; removes it afterwards."""
        self._made += 1
        path = self.work / f"run-{self._made}"
        try:
            yield path
        finally:
            for left in self.work.glob(f"run-{self._made}*"):
                shutil.rmtree(left) if left.is_dir() else left.unlink()

    def start(self, folder: Path, fault: Fault | None = None, arguments: list[str] | None = None) -> Attempt:
        """Starts an attempt: `fleetune run` with the recipe and the folder, or other arguments."""
        self._started += 1
        output = self.work / f"{folder.name}.{self._started}"
        removed = Path(f"{output}.removed")
        removed.mkdir()
        asked = {
            "arguments": arguments or ["run", str(self.recipe), "--out", str(folder)],
            "folder": str(folder),
            "log": f"{output}.log",
            "output": str(output),
            "removed": str(removed),
            "fault": (fault or Fault()).to_json(),
        }
        return Attempt(self._ask(asked)["process"], folder, output, removed)

    def wait(self, attempt: Attempt, seconds: float = HANG_SECONDS) -> Ended:
        """Returns how an attempt ended; fails where it does not end."""
        answer = self._ask({"process": attempt.process, "seconds": seconds})
        if answer["code"] is None:
            attempt.signal(signal.SIGKILL)
            self._ask({"process": attempt.process, "seconds": HANG_SECONDS})
            raise AssertionError(f"the process was still there after {seconds} s")
        # One that was killed at once has not opened them yet.
        files = {name: Path(f"{attempt.output}.{name}") for name in ("stdout", "stderr", "log")}
        out, said = (
            files[name].read_text("utf-8", "replace") if files[name].exists() else "" for name in ("stdout", "stderr")
        )
        return Ended(answer["code"], out, said, read_log(files["log"]), attempt.removed)

    def attempt(
        self,
        folder: Path,
        fault: Fault | None = None,
        arguments: list[str] | None = None,
        meanwhile: Callable[[Attempt], None] | None = None,
    ) -> Ended:
        """Makes an attempt and waits for its end; `meanwhile` may do something to it."""
        attempt = self.start(folder, fault, arguments)
        if meanwhile is not None:
            meanwhile(attempt)
        return self.wait(attempt)

    def check_end(self, folder: Path, after: str, repeats: int | None = REPEATS) -> Ended:
        """Runs `folder` to its end without a fault and compares it with the reference; fails where it differs.

        Args:
            folder: The run's folder.
            after: What happened to it.
            repeats: How many steps of a trial that the ledger had may be made again; any number where None.
        """
        before = steps_made(folder)
        ended = self.attempt(folder)
        assert ended.code == 0, f"after {after}: run again it ended with {ended.code}: {ended.stderr[-600:]}"
        differences = read_ending(folder).differences(self.reference[0])
        assert not differences, f"after {after}: " + "; ".join(differences)
        now = steps_made(folder)
        again = Counter(trial for (trial, step), attempt in before.items() if now[trial, step] != attempt)
        assert repeats is None or max(again.values(), default=0) <= repeats, f"after {after}: {again} steps made again"
        return ended

    @property
    def events(self) -> int:
        """How many events a run has."""
        return len(self.reference[1])

    def _run_through(self) -> tuple[Ending, list[Event]]:
        with self.folder() as folder:
            ended = self.attempt(folder)
            assert ended.code == 0, ended.stderr
            return read_ending(folder), ended.events

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self._server.stdin is not None
        self._server.stdin.write(json.dumps(request) + "\n")
        self._server.stdin.flush()
        return self._read()

    def _read(self) -> dict[str, Any]:
        assert self._server.stdout is not None
        line = self._server.stdout.readline()
        if not line:
            raise AssertionError(f"the server of attempts has ended:\n{self._said.read_text()}")
        answer: dict[str, Any] = json.loads(line)
        return answer


class Failures:
    """Gathers what went wrong in a series of experiments, so that one failure does not hide the others."""

    def __init__(self) -> None:
        self.found: list[str] = []
        self.tried = 0

    @contextmanager
    def trying(self, what: object) -> Iterator[None]:
        """Counts an experiment; takes note of its failure, with what repeats it."""
        self.tried += 1
        try:
            yield
        except Exception as error:
            said = " | ".join(str(error).splitlines()[:LINES]) if isinstance(error, AssertionError) else repr(error)
            self.found.append(f"{what}: {said}")

    def check(self) -> None:
        """Fails where something went wrong, or nothing was tried; prints how much was, for who counts (`-rP`)."""
        print(f"experiments: {self.tried}")
        assert self.tried
        shown = "\n".join(self.found[:SHOWN])
        assert not self.found, f"{len(self.found)} of {self.tried} experiments failed:\n{shown}"


ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "RAYON_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
}
"""The server forks, which threads do not survive; and the order of events must be the same each time."""
