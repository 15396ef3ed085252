"""Faults of the disk, as the system and SQLite really report them, become two lines that say what to do."""

from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from fleetune.cli.entry import run_command_line
from fleetune.errors import StorageError
from fleetune.lab.disk import naming_faults, storage_error
from fleetune.lab.ledger import Ledger, LedgerReader
from fleetune.lab.results import load_results
from fleetune.lab.status import read_status
from fleetune.lab.test_uses import log_test_use

ANYWHERE = [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.ESTALE, errno.EFBIG]
INSIDE = [errno.EACCES, errno.EPERM, errno.ENOENT, errno.ENOTDIR, errno.EMFILE]


@pytest.mark.parametrize("number", ANYWHERE)
def test_a_fault_of_the_disk_is_one_wherever_it_is_met(number: int, tmp_path: Path):
    for error in (OSError(number, os.strerror(number)), OSError(number, os.strerror(number), "/elsewhere/f")):
        named = storage_error(error, tmp_path)
        assert isinstance(named, StorageError) and named.exit_code == 1
        assert len(str(named).splitlines()) == 2
        assert (error.filename or str(tmp_path)) in str(named)


@pytest.mark.parametrize("number", INSIDE)
def test_other_refusals_are_faults_of_the_disk_in_the_runs_folder_alone(number: int, tmp_path: Path):
    inside = OSError(number, os.strerror(number), str(tmp_path / "trials" / "x"))
    assert str(tmp_path / "trials" / "x") in str(storage_error(inside, tmp_path))
    assert storage_error(OSError(number, os.strerror(number), "/elsewhere/f"), tmp_path) is None
    assert storage_error(OSError(number, os.strerror(number)), tmp_path) is None


def test_other_errors_are_none():
    for error in (OSError("no number"), ValueError("x"), ConnectionRefusedError(errno.ECONNREFUSED, "refused")):
        assert storage_error(error, Path("run")) is None
    with pytest.raises(sqlite3.IntegrityError), naming_faults(Path("run")):
        sqlite3.connect(":memory:").executescript(
            "CREATE TABLE t (x PRIMARY KEY); INSERT INTO t VALUES (1); INSERT INTO t VALUES (1)"
        )


def full(folder: Path) -> None:
    with sqlite3.connect(folder / "ledger.sqlite") as db:
        db.execute("PRAGMA max_page_count = 3")
        db.executescript("CREATE TABLE a (x); CREATE TABLE b (x); CREATE TABLE c (x); CREATE TABLE d (x)")


def read_only(folder: Path) -> None:
    sqlite3.connect(folder / "ledger.sqlite").execute("CREATE TABLE t (x)").connection.close()
    with sqlite3.connect(f"{(folder / 'ledger.sqlite').as_uri()}?mode=ro", uri=True) as db:
        db.execute("INSERT INTO t VALUES (1)")


def locked(folder: Path) -> None:
    with sqlite3.connect(folder / "ledger.sqlite", isolation_level=None) as one:
        one.execute("BEGIN IMMEDIATE")
        sqlite3.connect(folder / "ledger.sqlite", timeout=0.01).execute("CREATE TABLE t (x)")


def absent(folder: Path) -> None:
    sqlite3.connect(f"{(folder / 'none').as_uri()}?mode=ro", uri=True)


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (full, "the disk of .*ledger.sqlite is full.\nFree some space"),
        (read_only, "ledger.sqlite is read-only"),
        (locked, "ledger.sqlite is held by another program"),
        (absent, "ledger.sqlite cannot be opened"),
    ],
)
def test_what_sqlite_says_is_said_in_two_lines(fault: Callable[[Path], Any], said: str, tmp_path: Path):
    with pytest.raises(StorageError, match=said) as caught, naming_faults(tmp_path):
        fault(tmp_path)
    assert len(str(caught.value).splitlines()) == 2


def grown(folder: Path) -> bytearray:
    """Returns the bytes of a ledger of many pages, closed."""
    ledger = Ledger(folder)
    ledger.begin_attempt({"x": "y" * 50_000})
    ledger.set_meta(**{f"key{number}": {"key": "z" * 3000} for number in range(30)})
    ledger.close()
    return bytearray((folder / "ledger.sqlite").read_bytes())


def test_a_damaged_ledger_is_found_when_it_was_not_closed_and_what_is_left_is_said(tmp_path: Path):
    data = grown(tmp_path)
    for place in range(4096 * 5, len(data), 4096):
        data[place : place + 64] = b"\xff" * 64
    (tmp_path / "ledger.sqlite").write_bytes(data)
    # What a killed process leaves behind.
    (tmp_path / "ledger.sqlite-wal").write_bytes(b"\0" * 64)
    with pytest.raises(StorageError) as caught:
        Ledger(tmp_path)
    said = str(caught.value)
    assert "ledger.sqlite is damaged" in said and "best/" in said and len(said.splitlines()) == 2
    with pytest.raises(StorageError, match=r"ledger\.sqlite is damaged"), LedgerReader(tmp_path) as reader:
        reader.rows("SELECT * FROM meta")


@pytest.mark.parametrize(
    ("new", "said"), [(b"{{", "meta: Expecting property name"), (b"\xff{", "Could not decode to UTF-8")]
)
def test_a_changed_bit_in_text_is_damage(new: bytes, said: str, tmp_path: Path):
    data = grown(tmp_path)
    place = data.rindex(b'{"key')
    data[place : place + 2] = new
    (tmp_path / "ledger.sqlite").write_bytes(data)
    with pytest.raises(StorageError, match=rf"ledger\.sqlite is damaged \({said}") as caught, naming_faults(tmp_path):
        Ledger(tmp_path)
    assert len(str(caught.value).splitlines()) == 2


ENDLESS = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n)"
DISGUISED = (
    "DROP TABLE steps; CREATE TABLE t (sql); PRAGMA writable_schema = ON; "
    "UPDATE sqlite_master SET name = 'steps', tbl_name = 'steps', rootpage = 0, "
    f"sql = 'CREATE VIEW steps AS {ENDLESS} SELECT x FROM n' WHERE name = 't'"
)
"""A view whose row says that it is a table."""


@pytest.mark.parametrize(
    "change",
    [
        "ALTER TABLE steps RENAME TO meta2",
        f"DROP TABLE steps; CREATE VIEW steps AS {ENDLESS} SELECT x AS step, 'a' AS trial, 1.0 AS loss FROM n",
        DISGUISED,
        "CREATE TRIGGER steps AFTER INSERT ON events BEGIN DELETE FROM trials; END",
        "CREATE VIRTUAL TABLE more USING fts5(x)",
        "CREATE INDEX more ON meta (length(value))",
        "CREATE TABLE more (x)",
        "DROP TABLE steps; CREATE TABLE steps (trial, step, loss AS (hex(zeroblob(step))))",
    ],
)
def test_a_ledger_that_has_what_no_run_has_is_damaged(change: str, tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.begin_attempt({})
    ledger.end_attempt("done")
    ledger.close()
    with closing(sqlite3.connect(tmp_path / "ledger.sqlite")) as db:
        db.executescript(change)
    for use in (Ledger, LedgerReader, load_results, read_status):
        with pytest.raises(StorageError, match=r"ledger\.sqlite is damaged \((it has a|a column|malformed)") as caught:
            use(tmp_path)
        assert len(str(caught.value).splitlines()) == 2
    assert not log_test_use(tmp_path, "compare", "accuracy", 1)


def test_a_ledger_that_cannot_have_a_log_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    class NoMemoryToShare(sqlite3.Connection):
        def execute(self, query: str, *values: Any) -> sqlite3.Cursor:
            return super().execute(query.replace("= WAL", "= DELETE"), *values)

    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda *args, **more: connect(*args, **more, factory=NoMemoryToShare))
    with pytest.raises(StorageError, match="journal_mode is 'delete'"):
        Ledger(tmp_path)


def test_a_command_says_it_without_calling_it_a_fault_of_the_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def broken(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "/disk/page.html")

    monkeypatch.setattr("fleetune.cli.commands.write_page", broken)
    assert run_command_line(["report", str(tmp_path)]) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: the disk of /disk/page.html is full.\nFree some space") and said.count("\n") == 2
