"""What the operating system and SQLite say of a run's disk, in words that say what to do."""

from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fleetune.errors import StorageError

LEDGER = "ledger.sqlite"
AGAIN = "type the same command again: what was saved is whole"
_FREE = f"Free some space, then {AGAIN}"
_LOOK = f"Look at the disk and its connection, then {AGAIN}"
_PERMIT = "Change the permissions, or take a folder that may be written; a copy of a run's folder is as good"

_NO_TEXT = "Could not decode to UTF-8"
"""How Python, which gives this error no code, says that bytes of a text were changed."""

_OF_SYSTEM = {
    errno.ENOSPC: ("the disk of {path} is full", _FREE),
    errno.EDQUOT: ("{path}: the quota of its disk is used up", _FREE),
    errno.EFBIG: ("{path} is larger than its disk, or a limit, allows", _FREE),
    errno.EIO: ("the disk of {path} does not read or write (input/output error)", _LOOK),
    errno.ESTALE: ("the disk of {path} has gone (stale file handle)", _LOOK),
    errno.ENODEV: ("the disk of {path} has gone (no such device)", _LOOK),
    errno.EROFS: (
        "{path} is on a disk that is read-only",
        "Take a folder on another disk; a copy of a run's folder is as good",
    ),
}
"""These speak of the disk, whichever file they are met at."""

_NO_PERMISSION = dict.fromkeys((errno.EACCES, errno.EPERM), ("no permission for {path}", _PERMIT))

_OF_SQLITE = {
    sqlite3.SQLITE_FULL: ("the disk of {path} is full", _FREE),
    sqlite3.SQLITE_IOERR: ("the disk of {path} does not read or write, or its quota is used up ({said})", _LOOK),
    sqlite3.SQLITE_READONLY: ("{path} is read-only ({said})", _PERMIT),
    sqlite3.SQLITE_PERM: ("no permission for {path}", _PERMIT),
    sqlite3.SQLITE_CANTOPEN: ("{path} cannot be opened ({said})", _PERMIT),
    sqlite3.SQLITE_BUSY: ("{path} is held by another program ({said})", f"Close that, then {AGAIN}"),
    sqlite3.SQLITE_PROTOCOL: ("{path} is held by another program ({said})", f"Close that, then {AGAIN}"),
    sqlite3.SQLITE_CORRUPT: (
        "{path} is damaged ({said})",
        "What trials saved (best/, predictions.parquet) is beside it: keep the folder, and run with another --out",
    ),
}


def storage_error(error: BaseException, folder: Path | None) -> StorageError | None:
    """Returns the error of one or two lines for a fault of the disk; None where `error` is of another kind.

    Args:
        error: What was raised.
        folder: The run's folder; whatever the system refuses in it is a fault of the disk.
    """
    if isinstance(error, sqlite3.Error):
        words = _OF_SQLITE.get(primary_code(error))
        return None if words is None else _worded(words, LEDGER if folder is None else folder / LEDGER, error)
    if not isinstance(error, OSError) or error.errno is None:
        return None
    path = Path(error.filename) if isinstance(error.filename, str) else None
    words = _OF_SYSTEM.get(error.errno)
    if words is None and path is not None:
        words = _NO_PERMISSION.get(error.errno) if folder is None else _of_file(error.errno, path, folder)
    return None if words is None else _worded(words, path or folder or "what was written", error)


def damaged(ledger: Path, said: str) -> StorageError:
    """Returns the error of two lines for a ledger that is not what was written."""
    return _worded(_OF_SQLITE[sqlite3.SQLITE_CORRUPT], ledger, ValueError(said))


def _of_file(number: int, path: Path, folder: Path) -> tuple[str, str] | None:
    """Returns the words for what the system refuses in the run's folder; None for a file elsewhere."""
    if not _is_inside(path, folder):
        return None
    if number == errno.ENOENT:
        return "{path} is gone: it was deleted or moved meanwhile", f"Put it back, or {AGAIN}"
    return _NO_PERMISSION.get(
        number, (f"{{path}} cannot be used: {os.strerror(number)}", f"Put it right, then {AGAIN}")
    )


@contextmanager
def naming_faults(folder: Path | None) -> Iterator[None]:
    """Turns faults of the disk that are met inside into errors that name the file and say what to do.

    Raises:
        StorageError: In place of what the system or SQLite raised.
    """
    try:
        yield
    except (OSError, sqlite3.Error) as error:
        named = storage_error(error, folder)
        if named is None:
            raise
        raise named from error


def primary_code(error: sqlite3.Error) -> int:
    """Returns SQLite's result code without its details; 0 where Python itself raised the error."""
    if str(error).startswith(_NO_TEXT):
        return sqlite3.SQLITE_CORRUPT
    return int(getattr(error, "sqlite_errorcode", 0)) & 0xFF


def _worded(words: tuple[str, str], path: Path | str, error: BaseException) -> StorageError:
    said = (str(error).strip().splitlines() or [""])[0]
    return StorageError(f"{words[0]}.\n{words[1]}".replace("{path}", str(path)).replace("{said}", said))


def _is_inside(path: Path, folder: Path) -> bool:
    return path.absolute().is_relative_to(folder.absolute()) or Path(os.path.realpath(path)).is_relative_to(
        os.path.realpath(folder)
    )
