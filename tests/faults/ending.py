"""What a run ended with: everything of it that must be the same whatever happened on the way."""

from __future__ import annotations

import hashlib
import shutil
import sqlite3
import tempfile
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fleetune.lab.export import _best_tensors

WALL_CLOCK = {"attempt", "seconds", "peak_bytes", "evaluation_seconds", "evaluation_texts"}
"""Columns that say how long something took, in whose attempt, or how much of it was made twice."""


@dataclass(frozen=True)
class Ending:
    """The results of a run.

    Attributes:
        rows: Rows of the ledger by table, without the columns that hang on the clock.
        predictions: SHA-256 of each trial's predictions.
        tensors: SHA-256 of each of the best tensors by trial and name; the tensors of a failed trial are left out.
    """

    rows: dict[str, list[dict[str, Any]]]
    predictions: dict[str, str]
    tensors: dict[str, dict[str, str]]

    def differences(self, other: Ending) -> list[str]:
        """Returns what is not the same, a line for each table or file."""
        found = [
            f"{table}: {_first_difference(self.rows[table], other.rows[table])}"
            for table in self.rows
            if self.rows[table] != other.rows[table]
        ]
        trials = sorted({*self.predictions, *other.predictions})
        found += [f"predictions of {t}" for t in trials if self.predictions.get(t) != other.predictions.get(t)]
        for trial in sorted({*self.tensors, *other.tensors}):
            own, others = self.tensors.get(trial, {}), other.tensors.get(trial, {})
            names = [name for name in {**own, **others} if own.get(name) != others.get(name)]
            found += [f"{len(names)} best tensors of {trial}, such as {names[0]}"] if names else []
        return found

    def without(self, trials: set[str]) -> Ending:
        """Returns the same without what is of some trials."""
        rows = {
            table: [row for row in rows if not trials & {row.get("id"), row.get("trial")}]
            for table, rows in self.rows.items()
        }
        return Ending(
            rows,
            {trial: digest for trial, digest in self.predictions.items() if trial not in trials},
            {trial: digests for trial, digests in self.tensors.items() if trial not in trials},
        )


def read_ending(folder: Path) -> Ending:
    """Returns what the run in `folder` ended with."""
    with closing(sqlite3.connect(f"file:{folder / 'ledger.sqlite'}?mode=ro", uri=True)) as ledger:
        ledger.row_factory = sqlite3.Row
        (said,) = ledger.execute("PRAGMA integrity_check").fetchone()
        assert said == "ok", f"the ledger is damaged: {said}"
        rows = {
            "trials": _rows(ledger, "SELECT * FROM trials ORDER BY position"),
            "steps": _rows(ledger, "SELECT * FROM steps ORDER BY trial, step"),
            "metrics": _rows(ledger, "SELECT * FROM metrics ORDER BY trial, step, name"),
        }
    done = [str(row["id"]) for row in rows["trials"] if row["status"] == "done"]
    return Ending(
        rows,
        {trial: _digest((folder / "trials" / trial / "predictions.parquet").read_bytes()) for trial in done},
        {trial: _tensors(folder, trial) for trial in done},
    )


def steps_made(folder: Path) -> dict[tuple[str, int], int]:
    """Returns in which attempt each trial made each step that the run's ledger has; nothing where there is none."""
    if not (folder / "ledger.sqlite").exists():
        return {}
    with tempfile.TemporaryDirectory() as beside:
        # A reader of what a killed process left would begin to put it in order.
        for path in folder.glob("ledger.sqlite*"):
            shutil.copy(path, beside)
        with closing(sqlite3.connect(Path(beside) / "ledger.sqlite")) as ledger:
            try:
                rows = ledger.execute("SELECT trial, step, attempt FROM steps").fetchall()
            except sqlite3.DatabaseError:
                return {}
    return {(trial, step): attempt for trial, step, attempt in rows}


def _rows(ledger: sqlite3.Connection, query: str) -> list[dict[str, Any]]:
    return [{key: value for key, value in dict(row).items() if key not in WALL_CLOCK} for row in ledger.execute(query)]


def _tensors(folder: Path, trial: str) -> dict[str, str]:
    tensors = _best_tensors(folder / "trials" / trial)
    return {
        name: f"{tensor.dtype} {tuple(tensor.shape)} {_digest(tensor.numpy().tobytes())}"
        for name, tensor in sorted(tensors.items())
    }


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _first_difference(own: list[dict[str, Any]], other: list[dict[str, Any]]) -> str:
    if len(own) != len(other):
        return f"{len(own)} rows, {len(other)} expected"
    row, expected = next((a, b) for a, b in zip(own, other, strict=True) if a != b)
    keys = [key for key in expected if row.get(key) != expected[key]]
    place = {key: row[key] for key in ("id", "trial", "step", "name") if key in row}
    return f"{place} {[(key, row.get(key), expected[key]) for key in keys[:3]]}"
