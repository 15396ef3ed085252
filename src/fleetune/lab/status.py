"""Where a run is: each trial's progress, without reading its predictions."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fleetune.lab.ledger import LedgerReader, Row, value_of
from fleetune.lab.lock import is_locked
from fleetune.lab.plan import trial_label


@dataclass(frozen=True)
class TrialStatus:
    """How far one trial is.

    Attributes:
        id: The trial.
        name: Its configuration.
        data: Name of its data.
        backbone: Name of its backbone.
        seed: Its seed.
        status: `done`, `failed`, `running`, or `pending` (also where a process died and none has taken it up).
        step: Optimizer steps made.
        total_steps: Steps it will make, None before the first.
        loss: Of the last step.
        value: Its metric at its best evaluation on validation.
        reason: Why it failed.
        metric: Its metric.
        train_share: Share of the training texts it is given.
    """

    id: str
    name: str
    data: str
    backbone: str
    seed: int
    status: str
    step: int
    total_steps: int | None
    loss: float | None
    value: float | None
    reason: str | None
    metric: str
    train_share: float = 1.0

    @property
    def label(self) -> str:
        """Name and seed, and the share of the texts where it is not all."""
        return trial_label(self.name, self.seed, self.train_share)


@dataclass(frozen=True)
class RunStatus:
    """How far a run is; `alive` says whether a process works on it now."""

    folder: Path
    name: str
    metric: str
    alive: bool
    trials: list[TrialStatus]
    attempts: list[dict[str, Any]]

    @property
    def counts(self) -> dict[str, int]:
        """Number of trials by status."""
        words = ("done", "failed", "running", "pending")
        return {word: sum(trial.status == word for trial in self.trials) for word in words}

    def to_json(self) -> dict[str, Any]:
        """Returns what `fleetune status --json` prints."""
        return {
            "run": str(self.folder),
            "name": self.name,
            "metric": self.metric,
            "alive": self.alive,
            "counts": self.counts,
            "trials": [asdict(trial) for trial in self.trials],
            "attempts": self.attempts,
        }


def read_status(folder: Path) -> RunStatus:
    """Returns how far the run in `folder` is.

    Raises:
        UserError: If there is no run.
    """
    with LedgerReader(folder) as ledger:
        meta = ledger.meta()
        alive = is_locked(folder)
        metric = meta.get("metric", "")
        rows = ledger.rows(
            "SELECT trials.*, "
            "(SELECT loss FROM steps WHERE trial = trials.id AND step = trials.step) AS loss, "
            "json_extract(training, '$.metric') AS metric, "
            "(SELECT value FROM metrics WHERE trial = trials.id AND name = json_extract(trials.training, '$.metric') "
            "AND best ORDER BY step DESC LIMIT 1) AS value FROM trials ORDER BY position",
        )
        attempts = ledger.rows("SELECT id, started, ended, process, outcome FROM attempts ORDER BY id")
    trials = [_trial(row, alive) for row in rows]
    return RunStatus(folder, meta.get("name", folder.name), metric, alive, trials, [dict(row) for row in attempts])


def _trial(row: Row, alive: bool) -> TrialStatus:
    status = "pending" if row["status"] == "running" and not alive else row["status"]
    return TrialStatus(
        row["id"], row["name"], row["data"], row["backbone"], row["seed"], status, row["step"], row["total_steps"],
        row["loss"], row["value"], row["reason"], row["metric"],
        value_of(row, "train_share", 1.0),
    )  # fmt: skip
