"""The shim between a process and its C library: made here, and told what to do by ctypes or the environment."""

from __future__ import annotations

import ctypes
import errno
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass
from enum import IntEnum, IntFlag
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).with_name("shim.c")
FOREVER = 2**64 - 1
ABOVE = ".."
"""The path of an event that syncs the folder in which the watched one has its name."""


class Kind(IntFlag):
    """What a process does to a file, as `shim.c` numbers it."""

    OPEN = 1
    WRITE = 2
    SYNC = 4
    TRUNCATE = 8
    RENAME = 16
    UNLINK = 32
    MKDIR = 64
    LINK = 128
    CHMOD = 256


class Action(IntEnum):
    """What is done at an event, as `shim.c` numbers it."""

    COUNT = 0
    KILL_BEFORE = 1
    KILL_INSIDE = 2
    KILL_AFTER = 3
    FAIL = 4
    FILL = 5
    HALVE = 6


ALL_KINDS = Kind(0x1FF)
NEEDS_SPACE = Kind.OPEN | Kind.WRITE | Kind.TRUNCATE | Kind.RENAME | Kind.MKDIR | Kind.LINK | Kind.SYNC
NEEDS_PERMISSION = Kind.OPEN | Kind.RENAME | Kind.UNLINK | Kind.MKDIR | Kind.LINK | Kind.CHMOD
KINDS_OF = {
    errno.ENOSPC: NEEDS_SPACE,
    errno.EIO: ALL_KINDS,
    errno.EACCES: NEEDS_PERMISSION,
    errno.EROFS: NEEDS_PERMISSION,
}
"""Which calls an error comes from in the world."""


@dataclass(frozen=True)
class Fault:
    """What goes wrong in one attempt; its text is what a failed test says of it.

    Attributes:
        action: What is done.
        first: At which event, from 1 on.
        last: The last one; the first by default.
        error: The `errno` of a call that fails.
        kinds: Events of other kinds pass.
        clock_event: After which event the wall clock jumps; never by default.
        clock_seconds: How far.
    """

    action: Action = Action.COUNT
    first: int = FOREVER
    last: int = -1
    error: int = 0
    kinds: int = 0x1FF
    clock_event: int = FOREVER
    clock_seconds: int = 0

    def to_json(self) -> dict[str, int]:
        """Returns it as plain numbers."""
        return {name: int(value) for name, value in asdict(self).items()}

    def __str__(self) -> str:
        if self.clock_event != FOREVER:
            return f"wall clock moved by {self.clock_seconds} s after event {self.clock_event}"
        until = "" if self.last in (-1, self.first) else " and from there on"
        error = f" with {errno.errorcode[self.error]}" if self.error else ""
        return f"{self.action.name} at event {self.first}{until}{error}"


@dataclass(frozen=True)
class Event:
    """One call that changed something below the watched folder.

    Attributes:
        number: From 1 on.
        kind: What it does.
        bytes: How many it writes; how many a file that is opened has and keeps.
        path: What is changed, below the folder; `ABOVE` where the folder's own name is synced.
        target: Its new name.
    """

    number: int
    kind: Kind
    bytes: int
    path: str
    target: str | None = None


def read_log(path: Path) -> list[Event]:
    """Returns the events of one attempt."""
    if not path.exists():
        return []
    events = []
    for line in path.read_text("utf-8", "surrogateescape").splitlines():
        number, kind, size, names = line.split(" ", 3)
        first, _, second = names.partition(" > ")
        events.append(Event(int(number), Kind[kind.upper()], int(size), first, second or None))
    return events


def why_not() -> str | None:
    """Returns why the shim cannot be used here; None where it can."""
    if sys.platform != "linux":
        return "the shim that counts system calls is for Linux"
    if shutil.which("cc") is None:
        return "no C compiler (cc) to make the shim that counts system calls"
    return None


def compile_shim(folder: Path) -> Path:
    """Returns the shared library, made in `folder`."""
    library = folder / "shim.so"
    command = ["cc", "-shared", "-fPIC", "-O2", "-Wall", "-Wextra", "-Werror", "-o", str(library), str(SOURCE), "-ldl"]
    subprocess.run(command, check=True)
    return library


class Shim:
    """The shim in this process, which was started with it in LD_PRELOAD."""

    def __init__(self) -> None:
        library: Any = ctypes.CDLL(None)
        self._watch = library.faults_watch
        self._watch.argtypes = [ctypes.c_char_p, ctypes.c_char_p]
        self._plan = library.faults_plan
        self._plan.argtypes = [ctypes.c_int, ctypes.c_uint64, ctypes.c_uint64, ctypes.c_int, ctypes.c_int]
        self._keep = library.faults_keep
        self._keep.argtypes = [ctypes.c_char_p]
        self._clock = library.faults_clock
        self._clock.argtypes = [ctypes.c_uint64, ctypes.c_int64]

    def arm(self, folder: Path, log: Path, fault: Fault, removed: Path | None = None) -> None:
        """Counts what this process does below `folder` from now on, and does what `fault` says.

        A file that loses a name gets one in `removed`: the number of the event.
        """
        last = fault.first if fault.last == -1 else fault.last
        self._plan(fault.action, fault.first, last, fault.error, int(fault.kinds))
        self._clock(fault.clock_event, fault.clock_seconds)
        self._keep(str(removed or "").encode())
        self._watch(str(folder).encode(), str(log).encode())
