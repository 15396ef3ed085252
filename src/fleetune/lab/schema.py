"""The tables of a run's ledger, and how an older ledger becomes a newer one."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable, Iterator

from fleetune.errors import UserError

_VERSION_1 = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;

CREATE TABLE trials (
    id TEXT PRIMARY KEY,
    position INTEGER NOT NULL,          -- order of the recipe
    fleet INTEGER NOT NULL,
    name TEXT NOT NULL,                 -- of its configuration
    data TEXT NOT NULL,
    backbone TEXT NOT NULL,
    kind TEXT NOT NULL,
    settings TEXT NOT NULL,             -- JSON
    training TEXT NOT NULL,             -- JSON
    seed INTEGER NOT NULL,
    parameters TEXT NOT NULL,           -- JSON: adapter, head, trainable, total
    status TEXT NOT NULL DEFAULT 'pending' CHECK (status IN ('pending', 'running', 'done', 'failed')),
    reason TEXT,                        -- of a failure
    step INTEGER NOT NULL DEFAULT 0,
    total_steps INTEGER,
    best_step INTEGER,
    stopped_early INTEGER,
    seconds REAL NOT NULL DEFAULT 0,
    peak_bytes INTEGER,
    bundle_bytes INTEGER
) STRICT;

-- One row each time a process takes trials up; the newest one's id is the token without which nothing is written.
CREATE TABLE attempts (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    started TEXT NOT NULL,
    ended TEXT,
    process TEXT NOT NULL,
    outcome TEXT,                       -- done, failed, interrupted; NULL: it lives or was killed
    environment TEXT NOT NULL           -- JSON
) STRICT;

CREATE TABLE steps (
    trial TEXT NOT NULL REFERENCES trials (id),
    step INTEGER NOT NULL,
    attempt INTEGER NOT NULL REFERENCES attempts (id),
    epoch REAL NOT NULL,
    loss REAL,
    learning_rate REAL NOT NULL,
    gradient_norm REAL,
    texts INTEGER NOT NULL,
    tokens INTEGER NOT NULL,
    PRIMARY KEY (trial, step)
) STRICT, WITHOUT ROWID;

CREATE TABLE metrics (
    trial TEXT NOT NULL REFERENCES trials (id),
    step INTEGER NOT NULL,
    name TEXT NOT NULL,
    value REAL,                         -- NULL: undefined
    epoch REAL NOT NULL,
    best INTEGER NOT NULL,
    PRIMARY KEY (trial, step, name)
) STRICT, WITHOUT ROWID;

CREATE TABLE events (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    attempt INTEGER NOT NULL REFERENCES attempts (id),
    time TEXT NOT NULL,
    trial TEXT,
    kind TEXT NOT NULL,
    detail TEXT NOT NULL
) STRICT;

CREATE TABLE artifacts (
    path TEXT PRIMARY KEY,              -- relative to the run folder
    trial TEXT,
    kind TEXT NOT NULL,
    bytes INTEGER NOT NULL,
    sha256 TEXT NOT NULL
) STRICT;
"""

TEST_USES = """
-- One row each time scores on the test split were shown to somebody.
CREATE TABLE IF NOT EXISTS test_uses (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    time TEXT NOT NULL,
    command TEXT NOT NULL,              -- run, compare, report, export, python
    metric TEXT NOT NULL,
    configurations INTEGER NOT NULL     -- how many were scored
) STRICT;
"""
"""By itself, since a look at an older run makes this table there and leaves the rest to the run's next writer."""

_VERSION_2 = f"""
ALTER TABLE trials ADD COLUMN entry TEXT;                -- name of its [[method]], the same for its whole grid
ALTER TABLE trials ADD COLUMN train_share REAL NOT NULL DEFAULT 1;
ALTER TABLE trials ADD COLUMN train_texts INTEGER;
ALTER TABLE trials ADD COLUMN operations REAL;           -- of training and evaluations
ALTER TABLE trials ADD COLUMN serving_operations REAL;   -- of one text of mean length
ALTER TABLE trials ADD COLUMN evaluation_texts INTEGER;  -- these two are sums, over attempts too
ALTER TABLE trials ADD COLUMN evaluation_seconds REAL;
{TEST_USES}
"""

_VERSION_3 = """
-- Trials that train together. What runs together decides last digits: a division once made holds until all have ended.
CREATE TABLE fleets (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    number INTEGER NOT NULL,            -- of the fleet of the plan that it comes from
    trials TEXT NOT NULL,               -- JSON: ids in the order in which they run
    origin TEXT NOT NULL CHECK (origin IN ('planned', 'divided', 'retried', 'afresh')),
    is_open INTEGER NOT NULL DEFAULT 1  -- 0: its trials have ended, or go on in other fleets
) STRICT;

INSERT INTO fleets (number, trials, origin)
SELECT fleet, json_group_array(id), 'planned'
FROM (SELECT id, fleet FROM trials WHERE status <> 'done' ORDER BY position) GROUP BY fleet ORDER BY fleet;

-- One row a checkpoint of a fleet: all its trials under way, at the same micro-step.
CREATE TABLE generations (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    fleet INTEGER NOT NULL REFERENCES fleets (id),
    attempt INTEGER NOT NULL,
    time TEXT NOT NULL,
    trials TEXT NOT NULL,               -- JSON: id and facts of each trial under way, in their order
    packing TEXT NOT NULL               -- JSON
) STRICT;

CREATE TABLE checkpoints (
    generation INTEGER NOT NULL REFERENCES generations (id) ON DELETE CASCADE,
    trial TEXT NOT NULL,
    kind TEXT NOT NULL CHECK (kind IN ('last', 'best')),
    path TEXT NOT NULL,                 -- relative to the run folder
    bytes INTEGER NOT NULL,
    sha256 TEXT NOT NULL,
    PRIMARY KEY (generation, trial, kind)
) STRICT, WITHOUT ROWID;
"""

_VERSION_4 = """
ALTER TABLE generations ADD COLUMN sha256 TEXT;  -- of trials and packing; NULL: version 3 wrote the row
"""

MIGRATIONS: tuple[str, ...] = (_VERSION_1, _VERSION_2, _VERSION_3, _VERSION_4)
"""Script number n takes a ledger from version n to version n + 1; the version is SQLite's `user_version`."""

SCHEMA_VERSION = len(MIGRATIONS)

JSON = {
    "meta": "SELECT value FROM meta",
    "trials": "SELECT settings, training, parameters FROM trials",
    "attempts": "SELECT environment FROM attempts",
    "fleets": "SELECT trials FROM fleets",
}
"""Selects the columns that hold JSON, which SQLite takes for any text. Generations have a SHA-256 instead."""


def migrate(connection: sqlite3.Connection, after: Callable[[sqlite3.Connection], None] = lambda _: None) -> None:
    """Brings the ledger to this version's schema, each migration whole or not at all.

    Args:
        connection: Begins no transactions of itself (`isolation_level=None`).
        after: Is called at the end of each migration, in its transaction.

    Raises:
        UserError: If the ledger was written by a newer version.
    """
    while check_version(connection) < SCHEMA_VERSION:
        connection.execute("BEGIN IMMEDIATE")
        try:
            # Only now: another process may have migrated it meanwhile.
            version = check_version(connection)
            if version < SCHEMA_VERSION:
                for statement in statements(MIGRATIONS[version]):
                    connection.execute(statement)
                connection.execute(f"PRAGMA user_version = {version + 1}")
                after(connection)
            connection.execute("COMMIT")
        except BaseException:
            connection.rollback()
            raise


def statements(script: str) -> Iterator[str]:
    """Yields the statements of `script` one by one: as a whole, Python would commit before it and after a failure."""
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""
    if statement.strip():
        yield statement


def table_names() -> set[str]:
    """Returns the names of all tables that ledgers of some version have."""
    return set(re.findall(r"CREATE TABLE (?:IF NOT EXISTS )?(\w+)", "".join(MIGRATIONS)))


def check_version(connection: sqlite3.Connection) -> int:
    """Returns the ledger's schema version.

    Raises:
        UserError: If it is newer than this version of Fleetune.
    """
    version = int(connection.execute("PRAGMA user_version").fetchone()[0])
    if version > SCHEMA_VERSION:
        raise UserError(
            f"the ledger has schema version {version}; this fleetune knows up to {SCHEMA_VERSION}.\n"
            "Type: pip install --upgrade fleetune"
        )
    return version
