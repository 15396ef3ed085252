"""Stops a run when it is asked to, so that what it saved is whole, and says how to go on."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType, TracebackType

from fleetune.errors import RunError
from fleetune.lab.folder import RunFolder

GRACE_SECONDS = 8.0
"""What lasts longer is given up, a step or an evaluation too; the checkpoint before it is whole."""
SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


class RunInterrupted(RunError):
    """A run was asked to stop and did; it can go on."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number


class StopRequest:
    """While entered, the first Ctrl-C, SIGTERM or SIGHUP stops the run in `place`; a second one ends the process.

    A signal interrupts what is done at once, but in `between_steps` it is only noted in `signal_number`. Signals that
    are ignored, as under nohup, stay ignored. Outside the main thread, where Python takes no signals, it does nothing.

    Raises:
        RunInterrupted: On leaving, if a signal interrupted what was done inside.
    """

    def __init__(self, place: RunFolder) -> None:
        self.signal_number: int | None = None
        self._place = place
        self._is_deferring = False
        self._before: dict[int, signal.Handlers] = {}
        self._timer: threading.Timer | None = None

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                if signal.getsignal(number) != signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._note)  # type: ignore[assignment]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # From here on nothing is interrupted: what follows is the way out.
        self._is_deferring = True
        if self._timer is not None:
            self._timer.cancel()
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self.signal_number is not None and isinstance(error, KeyboardInterrupt):
            raise self.interruption() from None

    @contextmanager
    def between_steps(self) -> Iterator[None]:
        """Inside, a signal is only noted: what would be lost in the middle of a step is saved after it."""
        before, self._is_deferring = self._is_deferring, True
        try:
            yield
        finally:
            self._is_deferring = before

    def interruption(self) -> RunInterrupted:
        """Returns what to raise when a signal was noted."""
        assert self.signal_number is not None
        saved = f"stopped; what was trained is saved in {self._place.path}"
        return RunInterrupted(f"{saved}.\nTo go on type: {self._place.to_go_on}", self.signal_number)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal_number is not None:
            os._exit(128 + number)
        self.signal_number = number
        self._timer = threading.Timer(GRACE_SECONDS, self._give_up, args=(number,))
        self._timer.daemon = True
        self._timer.start()
        if not self._is_deferring:
            raise KeyboardInterrupt

    def _give_up(self, number: int) -> None:
        """Ends the process from a thread of its own, whatever the main thread is in the middle of."""
        with suppress(OSError, ValueError):
            sys.stderr.write(
                "stopped in the middle of a step or of other work; the last checkpoint of each trial is whole.\n"
                f"To go on type: {self._place.to_go_on}\n"
            )
            sys.stderr.flush()
        os._exit(128 + number)
