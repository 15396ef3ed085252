"""A seal on the rows of a run that ended: SQLite keeps no checksums, so a bit that changed in a number goes unseen."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from pathlib import Path

from fleetune.lab.disk import LEDGER, damaged

SEAL = "seal"
_QUERIES = (
    "SELECT * FROM meta WHERE key <> 'seal' ORDER BY key",
    "SELECT * FROM trials ORDER BY position",
    "SELECT * FROM attempts ORDER BY id",
    "SELECT * FROM steps ORDER BY trial, step",
    "SELECT * FROM metrics ORDER BY trial, step, name",
    "SELECT * FROM artifacts ORDER BY path",
)
"""All that results are made of. Looks at test scores and events are added when a run has ended, too."""


def seal_of(connection: sqlite3.Connection) -> str:
    """Returns a SHA-256 over the rows that results are made of."""
    digest = hashlib.sha256()
    for query in _QUERIES:
        for row in connection.execute(query):
            digest.update(repr(tuple(row)).encode())
        digest.update(b"\n")
    return digest.hexdigest()


def set_seal(connection: sqlite3.Connection) -> None:
    """Seals the rows as they are, within a transaction."""
    connection.execute(
        "INSERT OR REPLACE INTO meta (key, value) VALUES (?, ?)", (SEAL, json.dumps(seal_of(connection)))
    )


def check_seal(connection: sqlite3.Connection, folder: Path) -> bool:
    """Returns whether the rows are sealed: not where the run goes on, was killed, or never began.

    Raises:
        StorageError: If they are others than those that were sealed.
    """
    # One view of the database: a run may begin beside a reader.
    connection.execute("BEGIN")
    try:
        if connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'meta'").fetchone() is None:
            return False
        row = connection.execute("SELECT value FROM meta WHERE key = 'seal'").fetchone()
        broken = row is not None and row[0] != json.dumps(seal_of(connection))
    finally:
        connection.rollback()
    if broken:
        raise damaged(folder / LEDGER, "its rows are not those that were written")
    return row is not None
