"""Stops a run between two steps when it is asked to, so that what it saves is whole."""

from __future__ import annotations

import os
import signal
import sys
import threading
from types import FrameType, TracebackType

from fleetune.errors import RunError

GRACE_SECONDS = 8.0
"""A step or an evaluation that lasts longer is given up; the checkpoint before it is whole."""


class RunInterrupted(RunError):
    """A run was asked to stop and did; it can go on."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number


class StopRequest:
    """While entered, the first Ctrl-C or SIGTERM is noted in `signal_number`; a second one ends the process at once.

    Outside the main thread, where Python takes no signals, it does nothing.
    """

    def __init__(self, grace_seconds: float = GRACE_SECONDS) -> None:
        self.signal_number: int | None = None
        self._grace_seconds = grace_seconds
        self._before: dict[int, signal.Handlers] = {}
        self._timer: threading.Timer | None = None

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)  # type: ignore[assignment]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal_number is not None:
            os._exit(128 + number)
        self.signal_number = number
        self._timer = threading.Timer(self._grace_seconds, _give_up, args=(number,))
        self._timer.daemon = True
        self._timer.start()


def _give_up(number: int) -> None:
    sys.stderr.write("stopped in the middle of a step; the last checkpoint is whole, run again to go on\n")
    sys.stderr.flush()
    os._exit(128 + number)
