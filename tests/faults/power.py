"""What a disk has of a run after its machine lost power: what was synced, and a part of the rest."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path, PurePosixPath

from tests.faults.shim import ABOVE, Event, Kind

RUN = "run"
DATABASE = "ledger.sqlite"
LOG = f"{DATABASE}-wal"


class Names(Enum):
    """What becomes of names that were made, changed or removed in a folder that was not synced afterwards."""

    LOST = "names lost"
    KEPT = "names kept"


def lose_what_was_not_synced(folder: Path, events: list[Event], removed: Path, names: Names) -> None:
    """Leaves in a run's folder what a disk may have of it after a loss of power; the folder itself may be gone.

    Each file is cut off behind what it had at its last sync. Of names a file system may write any part, so these are
    the two ends: every name is as it was left, or each folder has the names of its last sync. Then what was made since
    is gone, what was renamed has its old name, and what was replaced or removed is back. The bytes of the last come
    from a link that the shim makes to a file before it loses a name: the file itself stays on disk with all that is
    written to it, nothing is copied while a run lasts, and a call that fails leaves a link that nobody looks at.

    Of SQLite's files the log is cut off like others, as long as it only grows: until what it holds is copied into the
    database. The database itself is left as it is, and so are their names, which SQLite syncs by itself.

    Args:
        folder: The run's, which was not there before the first event.
        events: All that was done to it.
        removed: Folder with those links, each named by the number of the event.
        names: Which of the two ends.
    """
    disk, log = Disk(removed), _log_of_sqlite(events)
    for event in events:
        if not _is_of_sqlite(event.path):
            disk.apply(event)
    run = disk.above.now.get(RUN)
    if not isinstance(run, Folder):
        return
    _find_files(run, folder)
    if log is not None and log.size > log.synced:
        assert (folder / LOG).stat().st_size == log.size, "the log was written at other places"
        os.truncate(folder / LOG, log.synced)
    after = folder.with_name(f"{folder.name}.after")
    is_left = RUN in disk.above.after(names)
    if is_left:
        _make(run, after, names)
        for path in [path for path in folder.iterdir() if _is_of_sqlite(path.name)]:
            path.rename(after / path.name)
    shutil.rmtree(folder)
    if is_left:
        after.rename(folder)


def _is_of_sqlite(path: str) -> bool:
    return path.startswith("ledger")


def _log_of_sqlite(events: list[Event]) -> File | None:
    """Returns how much of the write-ahead log is on disk; None once it begins anew, at places unknown."""
    log = File()
    for event in events:
        if event.path == DATABASE and event.kind is Kind.WRITE and log.size:
            return None
        if event.path != LOG:
            continue
        match event.kind:
            case Kind.OPEN:
                log.size, log.synced = event.bytes, min(log.synced, event.bytes)
            case Kind.WRITE:
                log.size += event.bytes
            case Kind.SYNC:
                log.sync()
            case Kind.UNLINK:
                log = File()
    return log


@dataclass(eq=False)
class File:
    """A file, whatever its names.

    Attributes:
        size: How many bytes it has.
        synced: How many of them are on disk.
        place: Where it is now.
    """

    size: int = 0
    synced: int = 0
    place: Path | None = None

    def sync(self) -> None:
        """Puts on disk what was written to it."""
        self.synced = self.size


@dataclass(eq=False)
class Folder:
    """A folder.

    Attributes:
        now: What its names stand for.
        synced: What they stand for on disk.
    """

    now: dict[str, File | Folder] = field(default_factory=dict)
    synced: dict[str, File | Folder] = field(default_factory=dict)

    def sync(self) -> None:
        """Puts its names on disk: neither what is in the files, nor names in the folders below."""
        self.synced = dict(self.now)

    def after(self, names: Names) -> dict[str, File | Folder]:
        """Returns what its names stand for after a loss of power."""
        return self.now if names is Names.KEPT else self.synced


class Disk:
    """A run's folder, and its name in the folder above, as events leave them.

    Args:
        removed: Folder with links to files that lost a name, named by the numbers of events.
    """

    def __init__(self, removed: Path) -> None:
        self.above = Folder()
        self._root = Folder({ABOVE: self.above})
        self._removed = removed

    def apply(self, event: Event) -> None:
        """Does what a call did. Calls that failed are events too: they made what was there, removed what was not."""
        parent, name = self._entry(event.path)
        node = parent.now.get(name)
        match event.kind:
            case Kind.MKDIR:
                parent.now.setdefault(name, Folder())
            case Kind.OPEN if not isinstance(node, Folder):
                file = parent.now[name] = node or File()
                file.size, file.synced = event.bytes, min(file.synced, event.bytes)
            case Kind.WRITE if isinstance(node, File):
                node.size += event.bytes
            case Kind.SYNC if node is not None:
                node.sync()
            case Kind.UNLINK:
                self._remove(parent, name, event.number)
            case Kind.RENAME | Kind.LINK if event.target is not None and node is not None:
                new_parent, new_name = self._entry(event.target)
                if event.kind is Kind.RENAME:
                    self._remove(new_parent, new_name, event.number)
                    del parent.now[name]
                new_parent.now[new_name] = node

    def _entry(self, path: str) -> tuple[Folder, str]:
        """Returns the folder in which a path ends, and the name there; where there is none, one that nobody sees."""
        *parents, name = (ABOVE,) if path == ABOVE else (ABOVE, RUN, *PurePosixPath(path).parts)
        folder = self._root
        for parent in parents:
            below = folder.now.get(parent)
            folder = below if isinstance(below, Folder) else Folder()
        return folder, name

    def _remove(self, parent: Folder, name: str, number: int) -> None:
        node = parent.now.get(name)
        if isinstance(node, File):
            node.place = self._removed / str(number)
        if isinstance(node, File) or (node is not None and not node.now):
            del parent.now[name]


def _find_files(folder: Folder, place: Path) -> None:
    """Sets where files are that have a name; fails where a folder has other names than its events left there."""
    names = {path.name for path in place.iterdir() if not _is_of_sqlite(path.name)}
    assert names == folder.now.keys(), f"{place} has {names}, but its events left {set(folder.now)}"
    for name, node in folder.now.items():
        if isinstance(node, Folder):
            _find_files(node, place / name)
        else:
            node.place = place / name


def _make(node: File | Folder, place: Path, names: Names) -> None:
    """Makes what is left of a file or folder after a loss of power."""
    if isinstance(node, Folder):
        place.mkdir()
        for name, below in node.after(names).items():
            _make(below, place / name, names)
        return
    assert node.place is not None
    os.link(node.place, place)
    if node.size > node.synced:
        os.truncate(place, node.synced)
