"""Lets one process at a time write to a run folder."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from types import TracebackType
from typing import IO

from fleetune.errors import RunLockedError


class RunLock:
    """A lock on a run folder that the operating system drops when its process dies, however it dies.

    Raises:
        RunLockedError: On entering, if another live process holds it.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / "ledger.lock"
        self._file: IO[str] | None = None

    def __enter__(self) -> RunLock:
        # Appending leaves the other process's line whole if the lock is refused.
        file = self.path.open("a+", encoding="utf-8")
        if not _try_lock(file):
            file.seek(0)
            holder = file.read().strip() or "another process"
            file.close()
            raise RunLockedError(
                f"{self.path.parent} is being written by {holder}.\n"
                f"Wait for it or stop it; meanwhile look with: fleetune status {self.path.parent}"
            )
        file.seek(0)
        file.truncate()
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        self._file = file
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def is_locked(folder: Path) -> bool:
    """Returns whether a live process writes to the run in `folder`."""
    path = folder / "ledger.lock"
    if not path.exists():
        return False
    try:
        with path.open("r+", encoding="utf-8") as file:
            return not _try_lock(file)
    except OSError:
        return False


def _try_lock(file: IO[str]) -> bool:
    try:
        import fcntl
    except ImportError:
        return _try_lock_on_windows(file)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _try_lock_on_windows(file: IO[str]) -> bool:
    import importlib
    from typing import Any

    msvcrt: Any = importlib.import_module("msvcrt")
    try:
        # A byte far behind the text, because a locked byte cannot be read by others there.
        file.seek(1 << 20)
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    except OSError:
        return False
    return True
