"""Lets one process at a time write to a run folder."""

from __future__ import annotations

import os
import socket
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO

from fleetune.errors import RunLockedError, StorageError

TRIES = 20
SECONDS_BETWEEN_TRIES = 0.05
"""Whoever only asks whether a run is alive holds its locks for an instant."""


class RunLock:
    """A lock on a run folder that the operating system drops when its process dies, however it dies.

    It is on the file `ledger.lock`, which also says who holds it, and, where the system can lock a folder, on the
    folder itself: deleting the file lets nobody else in.

    Raises:
        RunLockedError: On entering, if another live process holds it.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / "ledger.lock"
        self._file: IO[str] | None = None
        self._folder: int | None = None

    def __enter__(self) -> RunLock:
        try:
            self._folder = self._locked_folder()
            self._file = self._locked_file()
            self._file.seek(0)
            self._file.truncate()
            self._file.write(f"process {os.getpid()} on {socket.gethostname()}")
            self._file.flush()
        except BaseException:
            self._release()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._release()

    def _locked_folder(self) -> int | None:
        """Returns a descriptor of the folder, locked; None where the system can lock files only."""
        descriptor = _open_folder(self.path.parent)
        if descriptor is None:
            return None
        try:
            if _in_some_tries(descriptor):
                return descriptor
        except OSError:
            os.close(descriptor)
            return None
        os.close(descriptor)
        raise self._refusal()

    def _locked_file(self) -> IO[str]:
        """Returns the file, locked; one that was deleted or replaced while this process waited for it locks nobody."""
        while True:
            # Appending leaves the other process's line whole if the lock is refused.
            file = self.path.open("a+", encoding="utf-8")
            try:
                if not _in_some_tries(file.fileno()):
                    raise self._refusal()
                if _is_still(self.path, file.fileno()):
                    return file
            except OSError as error:
                file.close()
                raise StorageError(
                    f"{self.path} cannot be locked ({error.strerror}).\n"
                    "Give a folder on a disk of this machine: --out DIR"
                ) from None
            except BaseException:
                file.close()
                raise
            file.close()

    def _refusal(self) -> RunLockedError:
        try:
            holder = self.path.read_text("utf-8").strip()
        except OSError:
            holder = ""
        return RunLockedError(
            f"{self.path.parent} is being written by {holder or 'another process'}.\n"
            f"Wait for it or stop it; meanwhile look with: fleetune status {self.path.parent}"
        )

    def _release(self) -> None:
        if self._file is not None:
            # What a full disk did not take is tried again on closing; the file is closed all the same.
            with suppress(OSError):
                self._file.close()
            self._file = None
        if self._folder is not None:
            os.close(self._folder)
            self._folder = None


def is_locked(folder: Path) -> bool:
    """Returns whether a live process writes to the run in `folder`."""
    file = os.O_RDWR if os.name == "nt" else os.O_RDONLY
    return _is_held(folder / "ledger.lock", file) or (os.name != "nt" and _is_held(folder, os.O_RDONLY))


def _is_held(path: Path, flags: int) -> bool:
    try:
        descriptor = os.open(path, flags)
    except OSError:
        return False
    try:
        return not _try_lock(descriptor, shared=True)
    except OSError:
        return False
    finally:
        os.close(descriptor)


def _open_folder(folder: Path) -> int | None:
    """Returns a descriptor of the folder, None on Windows, which can lock files only."""
    return None if os.name == "nt" else os.open(folder, os.O_RDONLY)


def _is_still(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _in_some_tries(descriptor: int) -> bool:
    for number in range(TRIES):
        if number:
            time.sleep(SECONDS_BETWEEN_TRIES)
        if _try_lock(descriptor):
            return True
    return False


def _try_lock(descriptor: int, shared: bool = False) -> bool:
    try:
        import fcntl
    except ImportError:
        return _try_lock_on_windows(descriptor)
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _try_lock_on_windows(descriptor: int) -> bool:
    import importlib
    from typing import Any

    msvcrt: Any = importlib.import_module("msvcrt")
    try:
        # A byte far behind the text, because a locked byte cannot be read by others there.
        os.lseek(descriptor, 1 << 20, os.SEEK_SET)
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
    except OSError:
        return False
    return True
