"""Which trials of a run train together, as its ledger has it.

What runs together decides how work is divided between cores, and with that last digits. So a division once made holds
until its trials have ended, whatever memory is free when the run goes on.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass, replace

from fleetune.engine.generation import Generation
from fleetune.lab.checkpoints import add_generation, close_fleet
from fleetune.lab.ledger import Ledger
from fleetune.lab.plan import FleetPlan, Plan


@dataclass(frozen=True)
class OpenFleet:
    """Trials that train together and have not all ended.

    Attributes:
        id: Its row in the ledger.
        number: Of the fleet of the plan that it comes from.
        trials: Ids, in the order in which they run.
    """

    id: int
    number: int
    trials: tuple[str, ...]


class Division:
    """The fleets of a run that is open for writing.

    Args:
        ledger: The run's.
        folder: Name of the folder of its trials.
    """

    def __init__(self, ledger: Ledger, folder: str) -> None:
        self._ledger = ledger
        self.folder = folder

    def as_recorded(self, plan: Plan) -> Plan:
        """Returns the plan with the fleets that the run began with."""
        rows = self._ledger.rows("SELECT id, fleet FROM trials ORDER BY position")
        fleet_of = {row["id"]: row["fleet"] for row in rows}
        numbers = sorted(set(fleet_of.values()))
        parts = [tuple(trial for trial in plan.trials if fleet_of[trial.id] == number) for number in numbers]
        return replace(plan, fleets=tuple(FleetPlan(part) for part in parts))

    def open_fleets(self, number: int) -> list[OpenFleet]:
        """Returns the open fleets that come from fleet `number` of the plan."""
        rows = self._ledger.rows("SELECT * FROM fleets WHERE is_open AND number = ? ORDER BY id", number)
        return [OpenFleet(row["id"], row["number"], tuple(json.loads(row["trials"]))) for row in rows]

    def retry_failed(self) -> None:
        """Gives trials that failed fleets of their own, unless the run is still to be gone on with.

        A run that goes on ends first as it would have without a stop; whoever starts it once more tries again.
        """
        if "pending" in self._ledger.statuses().values():
            return
        rows = self._ledger.rows("SELECT id, fleet FROM trials WHERE status = 'failed' ORDER BY position")
        open_trials = {
            trial
            for row in self._ledger.rows("SELECT trials FROM fleets WHERE is_open")
            for trial in json.loads(row["trials"])
        }
        failed: dict[int, list[str]] = {}
        for row in rows:
            if row["id"] not in open_trials:
                failed.setdefault(row["fleet"], []).append(row["id"])
        with self._ledger.transaction() as db:
            for number, trials in failed.items():
                _insert(db, number, trials, "retried")

    def begin_again(self, trials: Sequence[str]) -> None:
        """Opens fleets for finished trials that are to be trained again, in the company that they had last.

        Of their earlier course the ledger keeps nothing; those beside them that are done keep what they have. Where
        memory ran out that time, the company is the whole that was divided: it is divided again if it must be.
        """
        if not trials:
            return
        planned: dict[str, list[str]] = {}
        for row in self._ledger.rows("SELECT trials FROM fleets WHERE origin <> 'divided' ORDER BY id"):
            company = json.loads(row["trials"])
            planned |= dict.fromkeys(company, company)
        numbers = {row["id"]: row["fleet"] for row in self._ledger.rows("SELECT id, fleet FROM trials")}
        fleets = {tuple(planned.get(trial, [trial])): numbers[trial] for trial in trials}
        with self._ledger.transaction() as db:
            for trial in trials:
                db.execute("UPDATE trials SET status = 'pending' WHERE id = ?", (trial,))
                self._ledger.forget_course(trial)
            for company, number in fleets.items():
                _insert(db, number, company, "afresh")

    def divide(self, fleet: OpenFleet, trials: Sequence[str], generation: Generation | None) -> list[OpenFleet]:
        """Puts two halves of `trials` in the place of `fleet`, which go on from `generation`; returns them."""
        middle = len(trials) // 2
        with self._ledger.transaction() as db:
            close_fleet(db, fleet.id)
            halves = [_insert(db, fleet.number, part, "divided") for part in (trials[:middle], trials[middle:])]
            for half in halves:
                if generation is not None:
                    # What did not fit together may fit in halves without smaller packs.
                    own = replace(generation.of(list(half.trials)), packing={})
                    add_generation(db, self._ledger.attempt, half.id, self.folder, own)
        return halves


def _insert(db: sqlite3.Connection, number: int, trials: Sequence[str], origin: str) -> OpenFleet:
    cursor = db.execute(
        "INSERT INTO fleets (number, trials, origin) VALUES (?, ?, ?)", (number, json.dumps(list(trials)), origin)
    )
    return OpenFleet(int(cursor.lastrowid or 0), number, tuple(trials))
