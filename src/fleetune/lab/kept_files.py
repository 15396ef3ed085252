"""Compares the files of a run with what its ledger has of them, and has what is damaged made again."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from fleetune.data.links import refuse_links
from fleetune.data.writing import PARTIAL, make_folder, sha256_of
from fleetune.engine.checkpoint import QUARANTINE
from fleetune.errors import RunError
from fleetune.lab.division import Division
from fleetune.lab.folder import RunFolder
from fleetune.lab.ledger import Ledger, LedgerReader
from fleetune.lab.notices import Noted, Watch


def refuse_damaged(ledger: LedgerReader, folder: Path, trial: str, kinds: Sequence[str]) -> None:
    """Does nothing if the files of a finished trial are as they were written.

    Args:
        ledger: The run's.
        folder: The run's.
        trial: Whose files.
        kinds: Which of them: `predictions`, `best`, `last`.

    Raises:
        RunError: If one is not.
    """
    rows = ledger.rows("SELECT path, sha256, kind FROM artifacts WHERE trial = ? ORDER BY path", trial)
    for path in _damaged(folder, (row for row in rows if row["kind"] in kinds)):
        raise _refusal(path, folder)


def refuse_damaged_data(ledger: LedgerReader, folder: Path, paths: Iterable[Path]) -> None:
    """Does nothing if what a run that ended says of its data is as it was written, or gone, or never was in the ledger.

    Args:
        ledger: The run's.
        folder: The run's.
        paths: The files, in the folders of the data.

    Raises:
        RunError: If one is not.
    """
    names = {path.relative_to(folder).as_posix() for path in paths if path.exists()}
    rows = ledger.rows("SELECT path, sha256 FROM artifacts WHERE trial IS NULL ORDER BY path")
    for path in _damaged(folder, (row for row in rows if row["path"] in names)):
        # Asked last: a run that was taken up since may have put another file there, whose row is to come. One that was
        # killed may have stopped between the two.
        if _has_ended(ledger):
            raise _refusal(path, folder)


def all_whole(ledger: Ledger, paths: Sequence[Path]) -> bool:
    """Returns whether files of the run are in the ledger, and as they were written."""
    names = [path.relative_to(ledger.folder).as_posix() for path in paths]
    known = {row["path"]: row for row in ledger.rows("SELECT path, sha256 FROM artifacts WHERE trial IS NULL")}
    return all(name in known for name in names) and not list(_damaged(ledger.folder, (known[name] for name in names)))


def begin_damaged_anew(ledger: Ledger, division: Division, watch: Watch) -> None:
    """Puts aside files of finished trials that are not as they were written; those trials are to be trained again."""
    query = (
        "SELECT path, sha256, trial FROM artifacts JOIN trials ON trials.id = artifacts.trial "
        "WHERE status = 'done' ORDER BY path"
    )
    damaged: dict[str, list[Path]] = {}
    for row in ledger.rows(query):
        for path in _damaged(ledger.folder, [row]):
            damaged.setdefault(row["trial"], []).append(path)
    for trial, paths in damaged.items():
        # A process that lost the run meanwhile moves nothing of the one that has it.
        with ledger.transaction():
            for path in paths:
                _put_aside(path, ledger.folder / division.folder / trial)
                name = path.relative_to(ledger.folder)
                ledger.note("file damaged", f"{name} is not what was written; put aside", trial)
        more = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
        watch(Noted(f"{paths[0].relative_to(ledger.folder)}{more} is damaged: put aside, the trial is trained again"))
    division.begin_again(list(damaged))


def remove_partials(ledger: Ledger, data: Path) -> None:
    """Removes what processes that were killed left half written in the folders of the data.

    Raises:
        RunError: If a link is among them: what it leads to is not the run's.
    """
    refuse_links(ledger.folder, data.name)
    left = [path for path in data.rglob("*") if path.name.endswith(PARTIAL)]
    with ledger.transaction():
        for path in left:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()


def _has_ended(ledger: LedgerReader) -> bool:
    """Returns whether the newest attempt came to its end: one that was interrupted may have stopped anywhere."""
    rows = ledger.rows("SELECT outcome FROM attempts ORDER BY id DESC LIMIT 1")
    return any(row["outcome"] in ("done", "failed") for row in rows)


def _refusal(path: Path, folder: Path) -> RunError:
    again = RunFolder(folder).to_go_on
    return RunError(
        f"{path} is damaged: its checksum is not the ledger's.\nRun the recipe again to make it anew; type: {again}"
    )


def _damaged(folder: Path, rows: Iterable[Any]) -> Iterator[Path]:
    for row in rows:
        path = folder / row["path"]
        if not path.resolve().is_relative_to(folder.resolve()):
            raise RunError(f"{folder} cannot be read: its ledger names a file outside of it ({row['path'][:80]!r})")
        try:
            whole = sha256_of(path) == row["sha256"]
        except FileNotFoundError:
            whole = False
        if not whole:
            yield path


def _put_aside(path: Path, trial: Path) -> None:
    """Moves a file into its trial's folder `quarantine/`, if it is there."""
    if path.is_file():
        make_folder(trial / QUARANTINE)
        path.replace(trial / QUARANTINE / "-".join(path.parts[-2:]))
