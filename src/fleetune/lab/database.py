"""Opens a run's database: for its one writer with all that makes it durable, for readers wherever it lies."""

from __future__ import annotations

import json
import shutil
import sqlite3
import tempfile
from contextlib import closing
from pathlib import Path

from fleetune.errors import StorageError, UserError
from fleetune.lab.disk import LEDGER, damaged, primary_code, storage_error
from fleetune.lab.filesystem import network_type
from fleetune.lab.schema import JSON, check_version, table_names

BUSY_SECONDS = 30.0
"""Nobody but a program outside Fleetune holds a ledger longer."""
UNSHARED = (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_PERM)
"""How SQLite says that it cannot make, or lock, the index of the WAL that processes share."""


def open_for_writing(path: Path) -> sqlite3.Connection:
    """Returns a connection whose commits survive a loss of power; it begins no transactions of itself.

    Raises:
        UserError: If the file is no database.
        StorageError: If it is damaged, has views, triggers or other tables, or cannot be written safely.
    """
    connection = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None)
    try:
        refuse_foreign_objects(connection, path)
        connection.row_factory = sqlite3.Row
        # A file system that has no memory for processes to share leaves the mode as it was, and says so only here.
        if (mode := connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]) != "wal":
            raise StorageError(
                f"{path} cannot have a write-ahead log there (journal_mode is '{mode}').\n"
                "Give a folder on a disk of this machine: --out DIR"
            )
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA fullfsync = ON")  # macOS: fsync alone leaves what it wrote to the drive's cache
        connection.execute("PRAGMA foreign_keys = ON")
    except BaseException as error:
        connection.close()
        if isinstance(error, sqlite3.DatabaseError):
            raise _unreadable(path, error) from None
        raise
    return connection


def look_through(connection: sqlite3.Connection, path: Path) -> None:
    """Does nothing where SQLite, and whoever reads its JSON, can read every row: later it would cost hours of training.

    Raises:
        StorageError: If they cannot, or a row belongs to a trial, an attempt or a fleet that is not there.
    """
    (said,) = connection.execute("PRAGMA integrity_check(1)").fetchone()
    if said == "ok":
        said = _unreadable_json(connection) or _orphan(connection) or "ok"
    if said != "ok":
        error = sqlite3.DatabaseError(" ".join(said.split()))
        error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
        raise _unreadable(path, error)


def refuse_foreign_objects(connection: sqlite3.Connection, path: Path) -> None:
    """Does nothing where the ledger has no more than tables that the schema makes, and the indexes of these.

    A view or a column that is computed runs what its author wrote, without an end perhaps, as soon as it is read; a
    trigger does as soon as rows are written.

    Raises:
        UserError: If a newer version of Fleetune wrote it.
        StorageError: If it has others.
    """
    check_version(connection)
    tables = table_names()
    for kind, name, sql in connection.execute("SELECT type, CAST(name AS TEXT), sql FROM sqlite_master"):
        # What SQLite makes of a row follows from its SQL; its type and name are claims of whoever wrote the file.
        is_own = (sql is None and kind == "index") or (
            kind == "table"
            and (name in tables or name.startswith("sqlite_"))
            and str(sql).upper().startswith("CREATE TABLE ")
        )
        if not is_own:
            raise damaged(path, f"it has a {str(kind)[:20]!r} {name[:40]!r}, which no run has")
        if connection.execute("SELECT 1 FROM pragma_table_xinfo(?) WHERE hidden > 1", (name,)).fetchone():
            raise damaged(path, f"a column of its table {name[:40]!r} is computed")


def _unreadable_json(connection: sqlite3.Connection) -> str | None:
    tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    for table, query in JSON.items():
        for row in connection.execute(query) if table in tables else ():
            for text in row:
                try:
                    json.loads(text)
                except ValueError as error:
                    return f"{table}: {error}"
    return None


def _orphan(connection: sqlite3.Connection) -> str | None:
    """Returns what is wrong with a row that names one of another table: its writer makes none whose name is unknown."""
    row = connection.execute("PRAGMA foreign_key_check").fetchone()
    return None if row is None else f"a row of {row[0]} names one of {row[2]} that is not there"


def open_for_reading(path: Path) -> sqlite3.Connection:
    """Returns a connection that reads, also beside a living writer, in a read-only folder or on a network.

    Raises:
        UserError: If the file is no database.
        StorageError: If it cannot be read, or has views, triggers or other tables.
    """
    try:
        connection = _open_where_it_lies(path)
        try:
            refuse_foreign_objects(connection, path)
        except BaseException:
            connection.close()
            raise
    except sqlite3.DatabaseError as error:
        raise _unreadable(path, error) from None
    connection.row_factory = sqlite3.Row
    return connection


def _open_where_it_lies(path: Path) -> sqlite3.Connection:
    address = path.resolve().as_uri()
    if network_type(path.parent) is None:
        try:
            return _read_only(f"{address}?mode=ro")
        except sqlite3.OperationalError as error:
            if primary_code(error) not in UNSHARED:
                raise
    if not _has_content(_wal(path)):
        # All is in the file itself, and nobody can write it here.
        return _read_only(f"{address}?immutable=1")
    return _copied_to_memory(path)


def _read_only(address: str) -> sqlite3.Connection:
    connection = sqlite3.connect(address, uri=True, timeout=BUSY_SECONDS)
    try:
        connection.execute("SELECT 1 FROM sqlite_master").fetchone()
    except BaseException:
        connection.close()
        raise
    return connection


def _copied_to_memory(path: Path) -> sqlite3.Connection:
    """Returns the database with what is in its log only, which SQLite would have to write to read."""
    with tempfile.TemporaryDirectory(prefix="fleetune-") as folder:
        copy = Path(folder) / LEDGER
        shutil.copyfile(path, copy)
        shutil.copyfile(_wal(path), _wal(copy))
        connection = sqlite3.connect(":memory:")
        with closing(sqlite3.connect(copy)) as source:
            source.backup(connection)
    return connection


def _unreadable(path: Path, error: sqlite3.DatabaseError) -> Exception:
    named = storage_error(error, path.parent)
    return named or UserError(f"{path} is not a readable ledger: {error}")


def _wal(path: Path) -> Path:
    return path.with_name(path.name + "-wal")


def _has_content(path: Path) -> bool:
    try:
        return path.stat().st_size > 0
    except OSError:
        return False
