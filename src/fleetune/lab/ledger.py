"""A run's memory: what was asked for, what happened, what was measured, and which files came of it."""

from __future__ import annotations

import json
import math
import os
import shlex
import socket
import sqlite3
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fleetune.data.writing import sha256_of, sync_folder
from fleetune.errors import RunTakenOverError, StorageError, UserError
from fleetune.lab.database import look_through, open_for_reading, open_for_writing
from fleetune.lab.disk import LEDGER, naming_faults
from fleetune.lab.schema import check_version, migrate
from fleetune.lab.seal import SEAL, check_seal, set_seal
from fleetune.redaction import redacted, redacted_facts

if TYPE_CHECKING:
    from fleetune.engine.events import Evaluated, Finished, Stepped

COMMIT_SECONDS = 2.0
"""Steps since the last commit may be lost with the machine; training repeats them from its checkpoint anyway."""

Row = sqlite3.Row


class Ledger:
    """The one writer of a run's database. The caller holds the run's lock.

    Losses and other step records are committed together with evaluations, and at least every `COMMIT_SECONDS`; all
    else is committed, and on disk, when its method returns.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._db = open_for_writing(folder / LEDGER)
        try:
            if check_seal(self._db, folder):
                # Its rows are another's than those that were sealed once they have a column more.
                migrate(self._db, after=set_seal)
            else:
                look_through(self._db, folder / LEDGER)
                migrate(self._db)
        except BaseException:
            self._db.close()
            raise
        self._file = (folder / LEDGER).stat()
        self._attempt = 0
        self._unwritten: list[Stepped] = []
        self._last_commit = time.monotonic()

    def close(self) -> None:
        """Commits and closes the database."""
        try:
            if self._unwritten:
                with self.transaction():
                    pass
        finally:
            self._db.close()

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Commits, as one, the steps before and all that is written to the ledger inside; nothing if that fails.

        No other process can take the run up meanwhile. So files that are put in their place inside come from the
        process that has the run, however long this one slept before.

        Raises:
            RunTakenOverError: If another process has taken the run up since.
            StorageError: If the folder was moved or deleted.
        """
        if self._db.in_transaction:
            yield self._db
            return
        # At once, and not with the first change: what is read here is then the newest, and stays it.
        self._db.execute("BEGIN IMMEDIATE")
        try:
            self._check_place()
            self._check_token()
            self._write_steps()
            yield self._db
            self._commit()
        except BaseException:
            with suppress(sqlite3.Error):
                self._db.rollback()
            raise
        self._unwritten.clear()
        self._last_commit = time.monotonic()

    def _commit(self) -> None:
        self._db.execute("COMMIT")

    def _check_place(self) -> None:
        """Files are written by their paths, and rows to the file that was opened: these must be of one folder."""
        try:
            is_there = os.path.samestat((self.folder / LEDGER).stat(), self._file)
        except FileNotFoundError:
            is_there = False
        if not is_there:
            self._unwritten.clear()
            raise StorageError(
                f"{self.folder} was moved, deleted or replaced while a run wrote to it.\n"
                "Go on where it is now: fleetune run FOLDER/recipe.toml"
            )

    def _check_token(self) -> None:
        newest = self._db.execute("SELECT coalesce(max(id), 0) FROM attempts").fetchone()[0]
        if self._attempt and newest != self._attempt:
            self._unwritten.clear()
            raise RunTakenOverError(
                f"{self.folder} was taken over by another process; this one stops and writes nothing.\n"
                f"Look with: fleetune status {shlex.quote(str(self.folder))}"
            )

    def begin_attempt(self, environment: Mapping[str, Any]) -> int:
        """Records that this process takes the run up; returns its token. Trials left running become pending."""
        process = f"{os.getpid()} on {socket.gethostname()}"
        with self.transaction():
            cursor = self._db.execute(
                "INSERT INTO attempts (started, process, environment) VALUES (?, ?, ?)",
                (_now(), process, _json(redacted_facts(json.loads(_json(environment))))),
            )
            self._db.execute("UPDATE trials SET status = 'pending' WHERE status = 'running'")
            self._db.execute("DELETE FROM meta WHERE key = ?", (SEAL,))
        # SQLite passes over errors of this: without the log's name on disk, what is committed is lost with the power.
        sync_folder(self.folder)
        self._attempt = int(cursor.lastrowid or 0)
        return self._attempt

    def end_attempt(self, outcome: str) -> None:
        """Records how this process left the run: `done`, `failed` or `interrupted`."""
        with self.transaction():
            self._db.execute(
                "UPDATE attempts SET ended = ?, outcome = ? WHERE id = ?", (_now(), outcome, self._attempt)
            )
            set_seal(self._db)

    def set_meta(self, **values: Any) -> None:
        """Stores facts of the whole run, as JSON."""
        with self.transaction():
            rows = [(key, _json(value)) for key, value in values.items()]
            self._db.executemany("INSERT OR REPLACE INTO meta (key, value) VALUES (?, ?)", rows)

    @property
    def attempt(self) -> int:
        """The token of this process's attempt, 0 before it."""
        return self._attempt

    def add_trials(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Adds trials and the fleets they train in; settings, training and parameters are stored as JSON."""
        rows, fleets = list(rows), defaultdict[int, list[str]](list)
        for row in rows:
            fleets[row["fleet"]].append(row["id"])
        with self.transaction():
            self._db.executemany(
                "INSERT INTO fleets (number, trials, origin) VALUES (?, ?, 'planned')",
                [(number, _json(trials)) for number, trials in fleets.items()],
            )
            self._db.executemany(
                "INSERT INTO trials "
                "(id, position, fleet, name, entry, data, backbone, kind, settings, training, seed, parameters, "
                "train_share, train_texts) VALUES (:id, :position, :fleet, :name, :entry, :data, :backbone, :kind, "
                ":settings, :training, :seed, :parameters, :train_share, :train_texts)",
                [{**row, **{key: _json(row[key]) for key in ("settings", "training", "parameters")}} for row in rows],
            )

    def start_trial(self, trial: str) -> None:
        """Marks a trial as running and forgets an earlier failure."""
        with self.transaction():
            self._db.execute("UPDATE trials SET status = 'running', reason = NULL WHERE id = ?", (trial,))
            self._note(trial, "started", "")

    def record_step(self, event: Stepped) -> None:
        """Adds a step; a step that is repeated after a resume takes the place of the lost one."""
        self._unwritten.append(event)
        if time.monotonic() - self._last_commit > COMMIT_SECONDS:
            with self.transaction():
                pass

    def _write_steps(self) -> None:
        self._db.executemany(
            "INSERT OR REPLACE INTO steps VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            [(event.trial, event.step, self._attempt, event.epoch, _finite(event.loss), event.learning_rate,
              _finite(event.gradient_norm), event.texts, event.tokens) for event in self._unwritten],
        )  # fmt: skip
        newest = {event.trial: event for event in self._unwritten}
        self._db.executemany(
            "UPDATE trials SET step = ?, total_steps = ? WHERE id = ?",
            [(event.step, event.total_steps, trial) for trial, event in newest.items()],
        )

    def record_evaluation(self, event: Evaluated) -> None:
        """Adds every metric of one evaluation; one that is repeated after a resume is not counted twice."""
        with self.transaction():
            query = "SELECT 1 FROM metrics WHERE trial = ? AND step = ? LIMIT 1"
            if self._db.execute(query, (event.trial, event.step)).fetchone() is None:
                self._add_evaluated(event.trial, event.texts, event.seconds)
            self._db.executemany(
                "INSERT OR REPLACE INTO metrics VALUES (?, ?, ?, ?, ?, ?)",
                [(event.trial, event.step, name, _finite(value), event.epoch, event.best)
                 for name, value in event.metrics.items()],
            )  # fmt: skip

    def evaluations_of(self, trial: str) -> int:
        """Returns how many evaluations a trial had in all attempts; one that was made twice counts once."""
        query = "SELECT count(DISTINCT step) FROM metrics WHERE trial = ?"
        return int(self._db.execute(query, (trial,)).fetchone()[0])

    def finish_trial(
        self,
        event: Finished,
        peak_bytes: int,
        bundle_bytes: int | None,
        operations: float | None = None,
        serving_operations: float | None = None,
    ) -> None:
        """Marks a trial as done. Its files are in the ledger before, so that a done trial is never without them."""
        with self.transaction():
            if self._status(event.trial) == "done":
                # Repeated after a kill; all of it is known.
                return
            self._db.execute(
                "UPDATE trials SET status = 'done', reason = NULL, step = ?, best_step = ?, stopped_early = ?, "
                "seconds = ?, peak_bytes = ?, bundle_bytes = ?, operations = ?, serving_operations = ? WHERE id = ?",
                (event.steps, event.best_step, event.stopped_early, event.seconds, peak_bytes, bundle_bytes,
                 operations, serving_operations, event.trial),
            )  # fmt: skip
            self._add_evaluated(event.trial, event.evaluated_texts, event.evaluation_seconds)
            if event.parameters:
                self._set_fitted(event.trial, event.parameters)
            self._note(event.trial, "finished", "")

    def forget_course(self, trial: str) -> None:
        """Removes a trial's files, steps and evaluations from the ledger: it begins anew."""
        with self.transaction():
            self.forget_beyond(trial, -1)
            columns = "evaluation_texts = NULL, evaluation_seconds = NULL"
            self._db.execute(f"UPDATE trials SET {columns} WHERE id = ?", (trial,))  # noqa: S608

    def forget_beyond(self, trial: str, step: int) -> None:
        """Removes a trial's files, and its steps and evaluations beyond `step`, from the ledger: it ended there.

        On another machine a trial that goes on may stop earlier than it had come, and its files have other names.
        """
        with self.transaction():
            self._db.execute("DELETE FROM artifacts WHERE trial = ?", (trial,))
            for table in ("steps", "metrics"):
                self._db.execute(f"DELETE FROM {table} WHERE trial = ? AND step > ?", (trial, step))  # noqa: S608

    def _add_evaluated(self, trial: str, texts: int, seconds: float) -> None:
        """Adds texts that were read without training on them, and the time of that."""
        self._db.execute(
            "UPDATE trials SET evaluation_texts = coalesce(evaluation_texts, 0) + ?, "
            "evaluation_seconds = coalesce(evaluation_seconds, 0) + ? WHERE id = ?",
            (texts, seconds, trial),
        )

    def _set_fitted(self, trial: str, fitted: int) -> None:
        """Adds what a baseline fitted to its numbers of parameters, where a classifier has its head."""
        row = self._db.execute("SELECT parameters FROM trials WHERE id = ?", (trial,)).fetchone()
        counts = json.loads(row["parameters"])
        counts |= {"head": fitted, "trainable": counts["adapter"] + fitted, "total": counts["total"] + fitted}
        self._db.execute("UPDATE trials SET parameters = ? WHERE id = ?", (_json(counts), trial))

    def fail_trial(self, trial: str, reason: str) -> None:
        """Marks a trial as failed, with its reason."""
        reason = redacted(reason)
        with self.transaction():
            self._db.execute("UPDATE trials SET status = 'failed', reason = ? WHERE id = ?", (reason, trial))
            self._note(trial, "failed", reason)

    def add_artifact(self, path: Path, kind: str, trial: str | None = None) -> None:
        """Records a file of the run folder with its size and SHA-256."""
        digest = sha256_of(path)
        name = path.relative_to(self.folder).as_posix()
        with self.transaction():
            row = (name, trial, kind, path.stat().st_size, digest)
            self._db.execute("INSERT OR REPLACE INTO artifacts VALUES (?, ?, ?, ?, ?)", row)

    def note(self, kind: str, detail: str, trial: str | None = None) -> None:
        """Adds a line to the run's diary."""
        with self.transaction():
            self._note(trial, kind, detail)

    def statuses(self) -> dict[str, str]:
        """Returns each trial's status by id."""
        return {row["id"]: row["status"] for row in self._db.execute("SELECT id, status FROM trials ORDER BY position")}

    def meta(self) -> dict[str, Any]:
        """Returns the facts of the whole run."""
        return {row["key"]: json.loads(row["value"]) for row in self._db.execute("SELECT key, value FROM meta")}

    def trial_keys(self) -> list[tuple[str, str]]:
        """Returns id and name of each trial in order."""
        return [(row["id"], row["name"]) for row in self._db.execute("SELECT id, name FROM trials ORDER BY position")]

    def rows(self, query: str, *values: Any) -> list[Row]:
        """Returns the rows of a SELECT statement, with what is not yet committed."""
        return self._db.execute(query, values).fetchall()

    def _status(self, trial: str) -> str | None:
        row = self._db.execute("SELECT status FROM trials WHERE id = ?", (trial,)).fetchone()
        return None if row is None else str(row["status"])

    def _note(self, trial: str | None, kind: str, detail: str) -> None:
        row = (self._attempt, _now(), trial, kind, redacted(detail))
        self._db.execute("INSERT INTO events (attempt, time, trial, kind, detail) VALUES (?, ?, ?, ?, ?)", row)


class LedgerReader:
    """Reads a run's database, also while its writer is at work.

    Raises:
        UserError: If `folder` holds no run.
        StorageError: If the ledger cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        path = folder / LEDGER
        with naming_faults(folder):
            if not path.is_file():
                raise UserError(
                    f"{folder} holds no run (it has no ledger.sqlite).\nType: fleetune run RECIPE --out {folder}"
                )
            self._db = open_for_reading(path)
            try:
                if check_version(self._db) == 0:
                    raise UserError(
                        f"{folder} holds no run yet: it was stopped before anything was recorded.\n"
                        f"Type: fleetune run RECIPE --out {folder}"
                    )
            except BaseException:
                self._db.close()
                raise

    def __enter__(self) -> LedgerReader:
        return self

    def __exit__(self, *_: object) -> None:
        self._db.close()

    def check_seal(self) -> None:
        """Does nothing unless the rows of a run that ended are not those that were written.

        Raises:
            StorageError: If they are not.
        """
        with naming_faults(self._folder):
            check_seal(self._db, self._folder)

    def rows(self, query: str, *values: Any) -> list[Row]:
        """Returns the rows of a SELECT statement."""
        with naming_faults(self._folder):
            return self._db.execute(query, values).fetchall()

    def meta(self) -> dict[str, Any]:
        """Returns the facts of the whole run."""
        return {row["key"]: json.loads(row["value"]) for row in self.rows("SELECT key, value FROM meta")}


def value_of(row: Row, column: str, otherwise: Any = None) -> Any:
    """Returns what `row` has in `column`; `otherwise` where an older version made the ledger, without that column."""
    return dict(zip(row.keys(), row, strict=True)).get(column, otherwise)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
