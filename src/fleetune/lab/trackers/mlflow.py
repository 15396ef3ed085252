"""MLflow: one run a trial, in the experiment that has the run folder's name."""

from __future__ import annotations

import logging
import os
import re
import shlex
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from fleetune.lab.trackers.base import Ending, Outcome, Point, TrackedRun, TrackedTrial, Tracker, flat

METRICS_A_CALL = 1000
PARAMETERS_A_CALL = 100
VALUE_CHARACTERS = 500
STATUSES: dict[Outcome, str] = {"done": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}
_NOT_IN_NAMES = re.compile(r"[^\w\-. /]")
Item = TypeVar("Item")


def make() -> Tracker:
    """Returns the tracker."""
    return MLflow()


class MLflow(Tracker):
    """Writes to `MLFLOW_TRACKING_URI`, or to a database in the run's folder; logins come from the environment alone."""

    def __init__(self) -> None:
        self._client: Any = None
        self._run = TrackedRun(Path(), "", "")
        self._experiment = ""
        self._ids: dict[str, str] = {}
        self._told: dict[str, dict[str, int]] = {}

    def open(self, run: TrackedRun) -> str:
        # MLflow reports its use to its makers unless told not to.
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        from mlflow import MlflowClient

        logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)
        self._run = run
        given = os.environ.get("MLFLOW_TRACKING_URI")
        database = run.folder / "mlflow.db"
        # MLflow's own helper quotes the path and nothing unquotes it again.
        address = given or f"sqlite:///{database.as_posix()}"
        artifacts = None if given else (run.folder / "mlartifacts").as_uri()
        self._client = MlflowClient(tracking_uri=address)
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or run.name
        self._experiment = self._experiment_id(name, artifacts)
        self._ids = self._known_runs()
        if given:
            return f"the experiment '{name}' at {given}"
        return f"type mlflow ui --backend-store-uri {shlex.quote(address)}"

    def start(self, trial: TrackedTrial) -> None:
        self._told[trial.id] = {}
        if trial.id in self._ids:
            self._client.update_run(self._ids[trial.id], status="RUNNING")
            self._told[trial.id] = self._last_steps(self._ids[trial.id])
            return
        tags = {
            "fleetune.comparison": self._run.name,
            "fleetune.run": self._run.key,
            "fleetune.trial": trial.id,
            "mlflow.source.name": "fleetune",
        }
        made = self._client.create_run(self._experiment, tags=tags, run_name=trial.label)
        self._ids[trial.id] = made.info.run_id
        self._log_parameters(trial)

    def log(self, trial: str, points: Sequence[Point]) -> None:
        told = self._told[trial]
        fresh = [
            (name, value, int(point.time * 1000), point.step)
            for point in points
            for name, value in point.values.items()
            if point.step > told.get(name, -1)
        ]
        self._log_metrics(trial, fresh)

    def end(self, trial: str, ending: Ending) -> None:
        run, now = self._ids[trial], int(time.time() * 1000)
        self._log_metrics(trial, [(name, value, now, ending.step) for name, value in ending.metrics.items()])
        self._client.set_tag(run, "fleetune.status", ending.outcome)
        if ending.reason is not None:
            self._client.set_tag(run, "fleetune.reason", ending.reason[:VALUE_CHARACTERS])
        with tempfile.TemporaryDirectory(prefix="fleetune-") as folder:
            for picture in ending.pictures:
                file = Path(folder) / f"{picture.key}.png"
                file.write_bytes(picture.png)
                self._client.log_artifact(run, str(file), "figures")
        self._client.set_terminated(run, STATUSES[ending.outcome])
        del self._told[trial]

    def close(self) -> None:
        self._client = None

    def _experiment_id(self, name: str, artifacts: str | None) -> str:
        found = self._client.get_experiment_by_name(name)
        if found is not None:
            return str(found.experiment_id)
        tags = {"fleetune.comparison": self._run.name}
        return str(self._client.create_experiment(name, artifact_location=artifacts, tags=tags))

    def _known_runs(self) -> dict[str, str]:
        """Returns the MLflow run of each trial that an earlier attempt of this run told of."""
        known: dict[str, str] = {}
        token: str | None = None
        while True:
            page = self._client.search_runs(
                [self._experiment], f"tags.`fleetune.run` = '{self._run.key}'", max_results=1000, page_token=token
            )
            known |= {one.data.tags["fleetune.trial"]: one.info.run_id for one in page}
            token = page.token
            if not token:
                return known

    def _last_steps(self, run: str) -> dict[str, int]:
        """Returns the last step of each metric: a step that is told twice would stand there twice."""
        names = self._client.get_run(run).data.metrics
        return {name: max(one.step for one in self._client.get_metric_history(run, name)) for name in names}

    def _log_parameters(self, trial: TrackedTrial) -> None:
        from mlflow.entities import Param

        parameters = [
            Param(_NOT_IN_NAMES.sub("_", name), str(value)[:VALUE_CHARACTERS])
            for name, value in flat(trial.configuration).items()
        ]
        for part in _parts(parameters, PARAMETERS_A_CALL):
            self._client.log_batch(self._ids[trial.id], params=part)

    def _log_metrics(self, trial: str, values: Sequence[tuple[str, float, int, int]]) -> None:
        from mlflow.entities import Metric

        for part in _parts([Metric(*value) for value in values], METRICS_A_CALL):
            self._client.log_batch(self._ids[trial], metrics=part)


def _parts(items: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
