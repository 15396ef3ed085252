"""Weights & Biases: one run a trial, in the group that has the run folder's name."""

from __future__ import annotations

import os
import shlex
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from fleetune.lab.trackers.base import Ending, Outcome, Point, TrackedRun, TrackedTrial, Tracker

PROJECT = "fleetune"
NAME_CHARACTERS = 128
SECONDS_TO_CONNECT = 20.0
SECONDS_TO_UPLOAD = 30.0
EXIT_CODES: dict[Outcome, int] = {"done": 0, "failed": 1, "interrupted": 255}
LOCAL_MODES = ("offline", "dryrun", "disabled")


def make() -> Tracker:
    """Returns the tracker."""
    return WandB()


class WandB(Tracker):
    """Writes to W&B, or into the run's folder alone by `WANDB_MODE=offline`, without a login and without a network.

    The login comes from the environment or from `wandb login`; nobody is asked for one.
    """

    def __init__(self) -> None:
        self._wandb: Any = None
        self._owns_service = False
        self._run = TrackedRun(Path(), "", "")
        self._is_local = False
        self._runs: dict[str, Any] = {}

    def open(self, run: TrackedRun) -> str:
        # W&B reports faults in itself to its makers unless told not to.
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        self._wandb, self._run = wandb, run
        # A notebook may have runs of its own, which share the service process.
        self._owns_service = "WANDB_SERVICE" not in os.environ
        session = wandb.setup(wandb.Settings(silent=True) if self._owns_service else None)
        mode = session.settings.mode
        self._is_local = mode in LOCAL_MODES
        if mode == "disabled":
            return "WANDB_MODE=disabled, so nothing is written"
        if self._is_local:
            return self._place()
        hindrance = _hindrance(session.settings)
        if hindrance is None:
            return f"the group '{run.name}' of the project {_project()}"
        self._is_local = True
        return f"{hindrance}; {self._place()}"

    def start(self, trial: TrackedTrial) -> str | None:
        # The id holds the run's key, since another run may have the same trial.
        name = f"{trial.id}-{self._run.key}"
        try:
            self._runs[trial.id] = self._begin(trial, name)
        except self._wandb.Error as error:
            if self._is_local:
                raise
            self._is_local = True
            # W&B does not give up an id that it could not connect.
            self._runs[trial.id] = self._begin(trial, f"{name}-offline")
            return f"{_first_line(error)}; {self._place()}"
        return None

    def log(self, trial: str, points: Sequence[Point]) -> None:
        run = self._runs[trial]
        # Where the server has the trial from an earlier attempt, this is the step after its last.
        told = run.step
        for point in points:
            if point.step >= told:
                run.log(dict(point.values), step=point.step)

    def end(self, trial: str, ending: Ending) -> None:
        run = self._runs[trial]
        with tempfile.TemporaryDirectory(prefix="fleetune-") as folder:
            figures = {}
            for picture in ending.pictures:
                file = Path(folder) / f"{picture.key}.png"
                file.write_bytes(picture.png)
                figures[f"figures/{picture.key}"] = self._wandb.Image(str(file), caption=picture.title)
            if figures:
                run.log(figures, step=max(ending.step, run.step))
        run.summary.update({**ending.metrics, "status": ending.outcome})
        if ending.reason is not None:
            run.summary["reason"] = ending.reason
        run.finish(exit_code=EXIT_CODES[ending.outcome])
        del self._runs[trial]

    def close(self) -> None:
        for trial in list(self._runs):
            with suppress(Exception):
                self._runs.pop(trial).finish(exit_code=EXIT_CODES["interrupted"])
        if self._wandb is not None and self._owns_service:
            self._wandb.teardown()

    def _begin(self, trial: TrackedTrial, name: str) -> Any:
        return self._wandb.init(
            project=_project(),
            group=self._run.name,
            job_type=trial.configuration.get("method"),
            name=trial.label[:NAME_CHARACTERS],
            id=name,
            resume="allow",
            reinit="create_new",
            config=trial.configuration,
            dir=str(self._run.folder),
            settings=self._settings(),
        )

    def _settings(self) -> Any:
        wished = {
            "silent": True,
            "console": "off",
            "disable_git": True,
            "save_code": False,
            "x_disable_stats": True,
            "x_disable_machine_info": True,
            "x_save_requirements": False,
            "init_timeout": SECONDS_TO_CONNECT,
            "finish_timeout": SECONDS_TO_UPLOAD,
            # Stopping one trial in the browser would interrupt all that train with it.
            "stop_fn": _go_on,
            **({"mode": "offline"} if self._is_local and os.environ.get("WANDB_MODE") != "disabled" else {}),
        }
        known = self._wandb.Settings.model_fields
        return self._wandb.Settings(**{name: value for name, value in wished.items() if name in known})

    def _place(self) -> str:
        place = shlex.quote(str(self._run.folder / "wandb"))
        return f"kept offline; to upload it type wandb sync {place}/offline-run-*"


def _project() -> str:
    return os.environ.get("WANDB_PROJECT") or PROJECT


def _hindrance(settings: Any) -> str | None:
    """Returns why W&B cannot be reached with the login that there is, None where it can; asks nobody for a login."""
    from wandb import Error
    from wandb.sdk.lib import wbauth

    try:
        found = wbauth.authenticate_session(
            host=settings.base_url, source="fleetune", prompt=False, verify=True, update_session=False
        )
    except Error as error:
        return _first_line(error)
    return None if found is not None else "no login was found (wandb login makes one)"


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def _go_on() -> None:
    """Does nothing."""
