"""The bench itself: the shim sees every call, a run makes the same ones each time, and faults do what they say."""

from __future__ import annotations

import errno
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.bench import Bench
from tests.faults.power import Names, lose_what_was_not_synced
from tests.faults.shim import ABOVE, Action, Event, Fault, Kind, read_log

SHORT_WRITER = """
import os, sys
from pathlib import Path
from tests.faults.shim import Fault, Shim

folder, log = map(Path, sys.argv[1:3])
Shim().arm(folder, log, Fault(*map(int, sys.argv[3:])))
with (folder / "a").open("wb") as file:
    file.write(b"1" * 100)
    file.flush()
    os.fsync(file.fileno())
(folder / "a").rename(folder / "b")
"""
WRITER = """
import os, shutil, sqlite3, sys
from pathlib import Path
import numpy as np
import pyarrow
import pyarrow.parquet
from safetensors.numpy import save_file
from tests.faults.shim import Fault, Shim

folder, log = map(Path, sys.argv[1:3])
Shim().arm(folder, log, Fault(*map(int, sys.argv[3:])))
os.path.exists("/begin")
with (folder / "a").open("wb") as file:
    file.write(b"1" * 100)
    file.flush()
    os.fsync(file.fileno())
(folder / "a").rename(folder / "b")
(folder / "sub" / "deep").mkdir(parents=True)
shutil.copy(folder / "b", folder / "sub" / "c")
os.chdir(folder)
Path("sub/c").chmod(0o600)
np.save("n.npy", np.arange(10))
save_file({"t": np.zeros(8, np.float32)}, folder / "s.safetensors")
pyarrow.parquet.write_table(pyarrow.table({"x": [1, 2]}), "p.parquet")
database = sqlite3.connect("d.sqlite")
database.execute("PRAGMA journal_mode = WAL")
database.execute("CREATE TABLE t (x)")
database.commit()
database.close()
os.truncate("b", 10)
os.link("b", "l")
shutil.rmtree(folder / "sub")
os.path.exists("/end")
"""
NAMER = """
import os, sys
from pathlib import Path
from tests.faults.shim import Fault, Shim

above, log = map(Path, sys.argv[1:3])
run = above / "run"
Shim().arm(run, log, Fault(), log.with_suffix(".removed"))

def sync(path):
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)

def write(path, *, synced="", lost="", how="w"):
    with path.open(how) as file:
        file.write(synced)
        file.flush()
        if synced:
            os.fsync(file.fileno())
        file.write(lost)

run.mkdir(exist_ok=True)
run.mkdir(exist_ok=True)
sync(above)
(run / "sub" / "deep").mkdir(parents=True)
for name in ("removed", "replaced", "new", "moved", "grown", "ledger"):
    write(run / name, synced=name)
write(run / "cut", lost="cut")
(run / "gone").mkdir()
sync(run)
(run / "removed").unlink()
(run / "removed").unlink(missing_ok=True)
(run / "gone").rmdir()
(run / "new").replace(run / "replaced")
(run / "moved").rename(run / "sub" / "moved")
write(run / "grown", lost=" more", how="a")
write(run / "ledger", lost=" of rows", how="a")
write(run / "made", synced="ma", lost="de")
write(run / "sub" / "deep" / "synced", lost="file")
sync(run / "sub" / "deep" / "synced")
sync(run / "sub" / "deep")
(run / "late").mkdir()
write(run / "late" / "synced", synced="file")
sync(run / "late")
"""
LEFT = {
    Names.LOST: {
        "cut": "",
        "gone": None,
        "grown": "grown",
        "ledger": "ledger of rows",
        "moved": "moved",
        "new": "new",
        "removed": "removed",
        "replaced": "replaced",
        "sub": None,
    },
    Names.KEPT: {
        "cut": "",
        "grown": "grown",
        "late": None,
        "late/synced": "file",
        "ledger": "ledger of rows",
        "made": "ma",
        "replaced": "new",
        "sub": None,
        "sub/deep": None,
        "sub/deep/synced": "file",
        "sub/moved": "moved",
    },
}
"""What a loss of power leaves of that: the content of each file, None for a folder."""
CALLS = {
    "write": Kind.WRITE,
    "pwrite64": Kind.WRITE,
    "writev": Kind.WRITE,
    "sendfile": Kind.WRITE,
    "copy_file_range": Kind.WRITE,
    "fsync": Kind.SYNC,
    "fdatasync": Kind.SYNC,
    "ftruncate": Kind.TRUNCATE,
    "truncate": Kind.TRUNCATE,
    "fallocate": Kind.TRUNCATE,
    "rename": Kind.RENAME,
    "unlink": Kind.UNLINK,
    "unlinkat": Kind.UNLINK,
    "rmdir": Kind.UNLINK,
    "mkdir": Kind.MKDIR,
    "link": Kind.LINK,
    "chmod": Kind.CHMOD,
    "fchmod": Kind.CHMOD,
    "fchmodat": Kind.CHMOD,
    "openat": Kind.OPEN,
    "open": Kind.OPEN,
}


def write_files(
    library: Path, folder: Path, *fault: int, program: str = SHORT_WRITER, before: tuple[str, ...] = ()
) -> tuple[int, list[Event]]:
    """Returns exit code and events of a process that writes files."""
    folder.mkdir()
    log = folder.with_suffix(".log")
    command = [*before, sys.executable, "-c", program, str(folder.resolve()), str(log), *map(str, fault)]
    environment = {**os.environ, "LD_PRELOAD": str(library)}
    done = subprocess.run(command, env=environment, capture_output=True, check=False)
    return done.returncode, read_log(log)


@pytest.mark.skipif(shutil.which("strace") is None, reason="no strace to compare the shim with")
def test_the_shim_counts_the_system_calls_that_strace_sees(library: Path, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    strace = ("strace", "-f", "-y", "-o", str(trace), "-e", f"trace=stat,newfstatat,{','.join(CALLS)}")
    code, events = write_files(library, tmp_path / "files", program=WRITER, before=strace)
    assert code == 0
    folder, seen, inside = str(tmp_path / "files"), [], False
    for line in trace.read_text().splitlines():
        call = line.split(None, 1)[1].partition("(")[0]
        inside = '"/begin"' in line or (inside and '"/end"' not in line)
        path = folder in line or re.search(r'\("|AT_FDCWD[^,]*, "[^/]', line)
        reads = call in ("open", "openat") and not re.search("O_WRONLY|O_RDWR|O_CREAT", line)
        if inside and call in CALLS and path and not reads and ".log>" not in line:
            seen.append(CALLS[call])
    assert [event.kind for event in events] == seen
    assert set(seen) == set(CALLS.values())


def test_a_fault_happens_where_it_is_told_to(library: Path, tmp_path: Path) -> None:
    _, events = write_files(library, tmp_path / "whole")
    first = next(event.number for event in events if event.kind is Kind.WRITE)
    sizes = {}
    for action in (Action.KILL_BEFORE, Action.KILL_INSIDE, Action.KILL_AFTER):
        code, before = write_files(library, tmp_path / action.name, action, first)
        assert (code, before) == (-signal.SIGKILL, events[:first])
        sizes[action] = (tmp_path / action.name / "a").stat().st_size
    assert list(sizes.values()) == [0, 50, 100]
    code, before = write_files(library, tmp_path / "refused", Action.FAIL, first, first, errno.EIO)
    # Python tries again when it closes the file.
    assert code == 1 and before[:first] == events[:first] and {event.path for event in before[first:]} <= {"a"}
    code, before = write_files(library, tmp_path / "full", Action.FILL, first, 2**63, errno.ENOSPC, Kind.WRITE)
    assert code == 1 and before[:first] == events[:first]
    assert (tmp_path / "full" / "a").stat().st_size == 50


def test_a_run_makes_the_same_calls_each_time(bench: Bench) -> None:
    with bench.folder() as folder:
        again = bench.attempt(folder).events
    assert list(map(_named, again)) == list(map(_named, bench.reference[1]))
    touched = {event.path.partition("/")[0] for event in again}
    assert {"ledger.sqlite-wal", "trials", "data"} <= touched


def test_a_halved_write_is_followed_by_the_rest(bench: Bench) -> None:
    """The kernel may take a part of what it is given at any write."""
    with bench.folder() as folder:
        ended = bench.attempt(folder, Fault(Action.HALVE, 1, 2**63))
        assert len(ended.events) > 1.2 * bench.events
        bench.check_end(folder, "writes that are taken by halves")


@pytest.mark.parametrize("names", Names)
def test_a_power_cut_leaves_what_was_synced(library: Path, tmp_path: Path, names: Names) -> None:
    removed, run = tmp_path / "files.removed", tmp_path / "files" / "run"
    removed.mkdir()
    code, events = write_files(library, tmp_path / "files", program=NAMER)
    assert code == 0
    lose_what_was_not_synced(run, events, removed, names)
    left = {str(path.relative_to(run)): path.read_text() if path.is_file() else None for path in run.rglob("*")}
    assert left == LEFT[names]


def test_a_power_cut_takes_a_folder_whose_own_name_was_not_synced(library: Path, tmp_path: Path) -> None:
    removed, run = tmp_path / "files.removed", tmp_path / "files" / "run"
    removed.mkdir()
    _, events = write_files(library, tmp_path / "files", program=NAMER)
    (of_name,) = (event for event in events if event.path == ABOVE)
    lose_what_was_not_synced(run, [event for event in events if event != of_name], removed, Names.LOST)
    assert list(run.parent.iterdir()) == []


def _named(event: Event) -> tuple[Kind, str]:
    """Returns kind and path; names drawn at random, and digests of files that say how long something took, left out."""
    return event.kind, re.sub(r"\.[a-z0-9_]{8}(?=/|\.partial|$)|\.\d+(?=\.partial)|[0-9a-f]{16}", "*", event.path)
