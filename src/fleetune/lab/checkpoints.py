"""A fleet's checkpoints as a run's ledger has them: a generation is valid from the commit that lists its files."""

from __future__ import annotations

import hashlib
import json
import re
import sqlite3
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from pathlib import Path

from fleetune.engine.checkpoint import SavedFile, quarantine, sweep
from fleetune.engine.generation import KEPT, Generation, TrialCut
from fleetune.lab.disk import LEDGER, damaged
from fleetune.lab.folder import TRIAL_ID
from fleetune.lab.ledger import Ledger

Say = Callable[[str], None]
_FILE = re.compile(rf"(?P<trial>{TRIAL_ID.pattern})/(?:last|best)/[A-Za-z0-9_][A-Za-z0-9._-]{{0,127}}")
"""A file of a checkpoint below the folder of all trials."""


class FleetCheckpoints:
    """The generations of one fleet of a run that is open for writing.

    Args:
        ledger: The run's.
        root: Folder of its trials.
        fleet: The fleet's row in the ledger.
        trials: Its trials, the ended ones too.
        say: Is told in one line what was damaged.

    Attributes:
        was_lost: Whether there were checkpoints of which none is whole; known after `latest`.
    """

    def __init__(self, ledger: Ledger, root: Path, fleet: int, trials: tuple[str, ...], say: Say) -> None:
        self.root = root
        self.was_lost = False
        self._ledger, self._fleet, self._trials, self._say = ledger, fleet, trials, say
        self._latest: Generation | None = None
        self._is_known = False

    def new_name(self) -> str:
        """Returns attempt and number: a process that was taken over cannot write into this one's files.

        Raises:
            RunTakenOverError: If another process has the run, before a file is written in its folder.
        """
        # Over before the files are written: they are large, and no other writer waits that long.
        with self._ledger.transaction():
            rows = self._ledger.rows("SELECT seq FROM sqlite_sequence WHERE name = 'generations'")
        return f"{self._ledger.attempt}-{(rows[0]['seq'] if rows else 0) + 1}"

    def latest(self) -> Generation | None:
        """Returns the newest whole generation; what is damaged of newer ones is put aside, noted and told."""
        if not self._is_known:
            self._latest, self._is_known = self._found(), True
        return self._latest

    def _found(self) -> Generation | None:
        rows = self._ledger.rows("SELECT * FROM generations WHERE fleet = ? ORDER BY id DESC", self._fleet)
        for row in rows:
            if row["sha256"] not in (None, _digest(row["trials"], row["packing"])):
                self._ledger.note("checkpoint damaged", f"the list of checkpoint {row['id']} is not what was written")
                self._let_go(row["id"], f"the list of checkpoint {row['id']} is damaged")
                continue
            generation = self._read(row)
            damaged = [file for file in generation.files if not file.is_whole(self.root)]
            if not damaged:
                return generation
            self._put_aside(row["id"], damaged)
        self.was_lost = bool(rows)
        return None

    def _read(self, row: sqlite3.Row) -> Generation:
        files: dict[str, dict[str, SavedFile]] = {}
        for one in self._ledger.rows("SELECT * FROM checkpoints WHERE generation = ?", row["id"]):
            path = self._checked(one["path"], one["trial"]).removeprefix(f"{self.root.name}/")
            files.setdefault(one["trial"], {})[one["kind"]] = SavedFile(path, one["bytes"], one["sha256"])
        cuts = [
            TrialCut(trial, facts, files[trial]["last"], files[trial].get("best"))
            for trial, facts in json.loads(row["trials"])
        ]
        return Generation(tuple(cuts), json.loads(row["packing"]))

    def _put_aside(self, generation: int, damaged: list[SavedFile]) -> None:
        more = f" and {len(damaged) - 1} more" if len(damaged) > 1 else ""
        with self._ledger.transaction():
            for file in damaged:
                quarantine(self.root, file)
                trial = file.path.split("/", 1)[0]
                self._ledger.note("checkpoint damaged", f"{file.path} is not what was written; put aside", trial)
            self._let_go(generation, f"checkpoint {damaged[0].path}{more} is damaged: put aside")

    def _let_go(self, generation: int, why: str) -> None:
        with self._ledger.transaction() as db:
            db.execute("DELETE FROM generations WHERE id = ?", (generation,))
        self._say(f"{why}, the one before is taken")

    def commit(self, generation: Generation) -> None:
        """Makes a generation valid whose files are on disk, and removes those that only outdated ones need."""
        with self._ledger.transaction() as db:
            add_generation(db, self._ledger.attempt, self._fleet, self.root.name, generation)
            before = self._paths(db)
            db.execute(
                "DELETE FROM generations WHERE fleet = ? AND id NOT IN "
                "(SELECT id FROM generations WHERE fleet = ? ORDER BY id DESC LIMIT ?)",
                (self._fleet, self._fleet, KEPT),
            )
            outdated = before - self._paths(db)
        self._latest, self._is_known = generation, True
        for path in outdated:
            # Their names are this process's own, or of attempts before it.
            (self.root.parent / path).unlink(missing_ok=True)

    def _paths(self, db: sqlite3.Connection) -> set[str]:
        query = "SELECT path, trial FROM checkpoints JOIN generations ON generation = id WHERE fleet = ?"
        return {self._checked(row["path"], row["trial"]) for row in db.execute(query, (self._fleet,))}

    def _checked(self, path: str, trial: str) -> str:
        """Returns the path, below the run's folder, of a file of a checkpoint of the trial.

        Raises:
            StorageError: If it is none: files elsewhere would be moved or removed.
        """
        found = _FILE.fullmatch(path.removeprefix(f"{self.root.name}/"))
        if not path.startswith(f"{self.root.name}/") or found is None or found["trial"] != trial:
            raise damaged(self.root.parent / LEDGER, f"a checkpoint's file is {path[:80]!r}")
        return path

    def end(self) -> None:
        """Closes the fleet and lets go of its generations: no trial of it is under way."""
        with self._ledger.transaction() as db:
            close_fleet(db, self._fleet)
        self._latest, self._is_known = None, True
        self._sweep()

    def has_final(self, trial: str) -> bool:
        """Returns whether the ledger has the trial as done, and with that its files."""
        return self._ledger.statuses().get(trial) == "done"

    def writing(self) -> AbstractContextManager[object]:
        """Returns a transaction of the ledger, in which no other process can take the run up."""
        return self._ledger.transaction()

    def _sweep(self) -> None:
        remove_leftovers(self._ledger, self.root, self._trials)


def remove_leftovers(ledger: Ledger, root: Path, trials: Iterable[str]) -> None:
    """Removes files of checkpoints that never became valid, or that nobody needs any more, since a process died."""
    # In a transaction: a process that lost the run removes nothing of the one that has it.
    with ledger.transaction():
        listed = ledger.rows("SELECT path FROM checkpoints UNION SELECT path FROM artifacts")
        prefix = f"{root.name}/"
        kept = {row["path"].removeprefix(prefix) for row in listed if row["path"].startswith(prefix)}
        for trial in trials:
            if not TRIAL_ID.fullmatch(str(trial)):
                raise damaged(root.parent / LEDGER, f"{str(trial)[:80]!r} is no trial's id")
            sweep(root, trial, kept)


def add_generation(db: sqlite3.Connection, attempt: int, fleet: int, folder: str, generation: Generation) -> None:
    """Lists a fleet's generation, within a transaction; `folder` is that of the trials in the run's."""
    trials = json.dumps([(cut.trial, cut.facts) for cut in generation.trials])
    packing = json.dumps(dict(generation.packing))
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    cursor = db.execute(
        "INSERT INTO generations (fleet, attempt, time, trials, packing, sha256) VALUES (?, ?, ?, ?, ?, ?)",
        (fleet, attempt, now, trials, packing, _digest(trials, packing)),
    )
    db.executemany(
        "INSERT INTO checkpoints VALUES (?, ?, ?, ?, ?, ?)",
        [
            (cursor.lastrowid, cut.trial, kind, f"{folder}/{file.path}", file.bytes, file.sha256)
            for cut in generation.trials
            for kind, file in cut.files.items()
        ],
    )


def close_fleet(db: sqlite3.Connection, fleet: int) -> None:
    """Marks a fleet as ended, within a transaction; its generations go with it."""
    db.execute("UPDATE fleets SET is_open = 0 WHERE id = ?", (fleet,))
    db.execute("DELETE FROM generations WHERE fleet = ?", (fleet,))


def _digest(trials: str, packing: str) -> str:
    """Returns a SHA-256 of where trials stood: a wrong number there would go on as if it were right."""
    return hashlib.sha256(f"{trials}\n{packing}".encode()).hexdigest()
