"""Each look at scores on the test split, as the ledger has it: the more looks, the less a test split is one."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from fleetune.compare.held_out import TestUse
from fleetune.compare.summary import scored_split
from fleetune.errors import FleetuneError
from fleetune.lab.database import refuse_foreign_objects
from fleetune.lab.filesystem import network_type
from fleetune.lab.folder import RunFolder
from fleetune.lab.ledger import LedgerReader
from fleetune.lab.schema import TEST_USES

if TYPE_CHECKING:
    from fleetune.lab.results import RunResults

WAIT_SECONDS = 10.0
"""A run that trains holds its ledger for a few seconds at most."""


def log_test_use(folder: Path, command: str, metric: str, configurations: int) -> bool:
    """Adds a look to the ledger, also while the run trains; returns False where it cannot be written.

    Args:
        folder: The run's folder.
        command: What looks: `run`, `compare`, `report`, `export`, `python`.
        metric: Name of the metric.
        configurations: How many configurations are scored.
    """
    # Behind a link lies another run's ledger.
    if network_type(folder) is not None or RunFolder(folder).ledger.is_symlink():
        return False
    row = (datetime.now(UTC).isoformat(timespec="milliseconds"), command, metric, configurations)
    address = f"{RunFolder(folder).ledger.resolve().as_uri()}?mode=rw"
    try:
        with closing(sqlite3.connect(address, uri=True, timeout=WAIT_SECONDS)) as db, db:
            refuse_foreign_objects(db, folder)
            db.execute(TEST_USES)
            db.execute("INSERT INTO test_uses (time, command, metric, configurations) VALUES (?, ?, ?, ?)", row)
    except (sqlite3.Error, OSError, FleetuneError):
        return False
    return True


def log_scores(results: RunResults, command: str, metric: str | None = None) -> RunResults:
    """Adds the look that scoring `results` is to the ledger, and returns them with it among their `test_uses`.

    Nothing is added where nothing is scored on test.

    Args:
        results: What is scored.
        command: What looks.
        metric: By which metric; each trial's own if absent.
    """
    scored = [trial for trial in results.trials if len(trial.labels("test"))]
    if scored_split(results.trials) != "test" or not scored:
        return results
    configurations = len({(trial.configuration, trial.train_share) for trial in scored})
    if not log_test_use(results.folder, command, metric or scored[0].metric, configurations):
        return results
    with LedgerReader(results.folder) as ledger:
        return replace(results, test_uses=read_test_uses(ledger))


def read_test_uses(ledger: LedgerReader) -> list[TestUse]:
    """Returns every look in order; none where the ledger is older than the record of them."""
    if not ledger.rows("SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'test_uses'"):
        return []
    rows = ledger.rows("SELECT time, command, metric, configurations FROM test_uses ORDER BY id")
    return [TestUse(row["time"], row["command"], row["metric"], row["configurations"]) for row in rows]
