"""A disk that is full, fails or refuses: the run ends loudly, what was saved is whole, and run again it goes on."""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Iterable
from pathlib import Path

import pytest

from tests.faults.bench import Bench, Ended, Failures
from tests.faults.shim import FOREVER, KINDS_OF, Action, Event, Fault, Kind

PARTS = 12
SAVE_EVENTS = 80
"""More than a checkpoint of a fleet has."""
MAY_PASS = Kind.UNLINK | Kind.CHMOD | Kind.MKDIR
"""What is refused of these may do no harm: what was to be removed stays, what was to be made is there."""


def faults_at(event: Event) -> list[Fault]:
    """Returns what a disk may answer to an event: full from then on, one error, no permission from then on."""
    found = []
    if event.kind & (Kind.WRITE | Kind.TRUNCATE | Kind.OPEN | Kind.MKDIR | Kind.LINK):
        growing = int(KINDS_OF[errno.ENOSPC] & ~Kind.SYNC)
        found.append(Fault(Action.FILL, event.number, FOREVER, errno.ENOSPC, growing))
    elif event.kind & KINDS_OF[errno.ENOSPC]:
        found.append(Fault(Action.FAIL, event.number, error=errno.ENOSPC))
    found.append(Fault(Action.FAIL, event.number, error=errno.EIO))
    if event.kind & KINDS_OF[errno.EACCES]:
        found.append(Fault(Action.FAIL, event.number, FOREVER, errno.EACCES, int(KINDS_OF[errno.EACCES])))
    return found


def refuse(bench: Bench, tries: Iterable[tuple[Event, Fault]]) -> Failures:
    """Makes each fault in a new run, and runs it again."""
    failures = Failures()
    for event, fault in tries:
        with bench.folder() as folder, failures.trying(f"{fault} ({event.kind.name} of {event.path})"):
            ended = bench.attempt(folder, fault)
            check_loud(ended, folder, bool(event.kind & MAY_PASS) or is_of_ledger(event, bench.reference[1]))
            bench.check_end(folder, "it")
    return failures


def is_of_ledger(event: Event, events: list[Event]) -> bool:
    """Returns whether SQLite makes the call: it syncs the folder after its own files, and passes over a refusal."""
    before = events[max(0, event.number - 2)]
    syncs_folder = event.kind is Kind.SYNC and event.path == "." and before.kind is Kind.SYNC
    return (before if syncs_folder else event).path.startswith("ledger")


def check_loud(ended: Ended, folder: Path, may_pass: bool) -> None:
    """Fails where a refusal was passed over in silence, or told in another way than in a line or two with a file."""
    if ended.code == 0:
        assert may_pass, "it ended as if nothing had happened"
        return
    assert ended.is_loud, f"it ended with {ended.code} and said: {ended.stderr[-600:]}"
    assert folder.name in ended.error, f"no file is named in: {ended.error}"


def every_refusal(bench: Bench) -> list[tuple[Event, Fault]]:
    """Returns each event of a run with one of its faults, and those of a save in its middle with each of them."""
    found = []
    for event in bench.reference[1]:
        faults = faults_at(event)
        is_in_save = 0 <= event.number - bench.events // 2 < SAVE_EVENTS
        found += [(event, fault) for fault in (faults if is_in_save else [faults[event.number % len(faults)]])]
    return found


def test_some_refusals_are_loud_and_lose_nothing(bench: Bench) -> None:
    tries = every_refusal(bench)
    refuse(bench, tries[11 :: len(tries) // 5]).check()


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("part", range(PARTS))
def test_every_refusal_is_loud_and_loses_nothing(bench: Bench, part: int) -> None:
    refuse(bench, every_refusal(bench)[part::PARTS]).check()


@pytest.mark.parametrize(
    ("holding", "error"), [("nothing", errno.EACCES), ("half a run", errno.EROFS), ("a whole run", errno.EACCES)]
)
def test_a_folder_that_may_not_be_written_is_refused_and_left_alone(bench: Bench, error: int, holding: str) -> None:
    with bench.folder() as folder:
        if holding == "nothing":
            folder.mkdir()
        else:
            bench.attempt(folder, Fault(Action.KILL_BEFORE, bench.events // 2) if holding == "half a run" else None)
        before = _content(folder)
        ended = bench.attempt(folder, Fault(Action.FAIL, 1, FOREVER, error, int(KINDS_OF[error])))
        assert ended.is_loud and folder.name in ended.error, ended.stderr
        assert _content(folder) == before
        bench.check_end(folder, "a read-only folder")


def _content(folder: Path) -> dict[str, str]:
    """Returns the digests of a folder's files, SQLite's shared index left out."""
    files = (path for path in folder.rglob("*") if path.is_file() and not path.name.endswith("-shm"))
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
