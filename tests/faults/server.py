"""Imports everything once, then forks a process for each attempt at a run: `python -m tests.faults.server RECIPE DIR`.

Torch and transformers take seconds to import, and an attempt with a tiny model less than one. Reads a request a line on
stdin and answers a line on stdout.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

from tests.faults.shim import Fault, Shim


def main() -> None:
    """Serves until stdin ends."""
    # What libraries print is no answer.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    recipe, folder = sys.argv[1:]
    # Whoever started the tests may ignore a signal (nohup); attempts would inherit that.
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    shim = Shim()
    _leave_the_page_out()
    code = _run(["run", recipe, "--out", folder])
    # What is there now is shared by all; the children's collections need not walk through it.
    gc.collect()
    gc.freeze()
    _answer(answers, {"ready": code == 0})
    for line in sys.stdin:
        request: dict[str, Any] = json.loads(line)
        _answer(answers, _start(shim, request) if "arguments" in request else _wait(**request))


def _answer(answers: Any, value: dict[str, Any]) -> None:
    answers.write(json.dumps(value) + "\n")
    answers.flush()


def _start(shim: Shim, request: dict[str, Any]) -> dict[str, Any]:
    """Forks a process that is the command line with the request's arguments; returns its id."""
    sys.stdout.flush()
    sys.stderr.flush()
    process = os.fork()
    if process == 0:
        code = 70
        try:
            _redirect(Path(request["output"]))
            folder, log, removed = (Path(request[name]) for name in ("folder", "log", "removed"))
            shim.arm(folder, log, Fault(**request["fault"]), removed)
            code = _run(request["arguments"])
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    return {"process": process}


def _redirect(output: Path) -> None:
    silent = os.open(os.devnull, os.O_RDONLY)
    os.dup2(silent, 0)
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(f"{output}.{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), number)


def _run(arguments: list[str]) -> int:
    from fleetune.cli.entry import run_command_line

    sys.argv = ["fleetune", *arguments]
    return run_command_line(arguments)


def _wait(process: int, seconds: float) -> dict[str, Any]:
    """Returns how a process ended, None where it has not after `seconds`."""
    until = time.monotonic() + seconds
    while True:
        found, status = os.waitpid(process, os.WNOHANG)
        if found:
            return {"code": os.waitstatus_to_exitcode(status)}
        if time.monotonic() > until:
            return {"code": None}
        time.sleep(0.002)


def _leave_the_page_out() -> None:
    """A page takes seconds to draw, and is made anew from the ledger by whoever asks for it."""
    page, figures = (ModuleType(f"fleetune.report.{name}") for name in ("html", "figures.trial"))
    page.write_report = lambda results, folder: folder / "index.html"  # type: ignore[attr-defined]
    figures.trial_pictures = None  # type: ignore[attr-defined]
    sys.modules |= {module.__name__: module for module in (page, figures)}


if __name__ == "__main__":
    main()
