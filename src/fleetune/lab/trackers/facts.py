"""Reads from a run's folder what trackers are told of its trials."""

from __future__ import annotations

import hashlib
import json
import math
import threading
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fleetune.compare.result import TrialResult
from fleetune.lab.executors.base import BackboneFacts
from fleetune.lab.ledger import LedgerReader
from fleetune.lab.plan import Trial
from fleetune.lab.results import load_trial
from fleetune.lab.trackers.base import Draw, Ending, Picture, TrackedRun, TrackedTrial
from fleetune.methods import reads_model

KEY_DIGITS = 8


def tracked_run(folder: Path) -> TrackedRun:
    """Returns the run in `folder`; its key is made of its first attempt, which no other run has."""
    with LedgerReader(folder) as ledger:
        first = ledger.rows("SELECT started, process FROM attempts ORDER BY id LIMIT 1")[0]
    place = folder.resolve()
    digest = hashlib.sha256(f"{first['started']} {first['process']}".encode()).hexdigest()
    return TrackedRun(place, place.name, digest[:KEY_DIGITS])


def parameter_counts(folder: Path) -> dict[str, dict[str, int]]:
    """Returns the numbers of parameters of each trial of the run by its id."""
    with LedgerReader(folder) as ledger:
        return {row["id"]: json.loads(row["parameters"]) for row in ledger.rows("SELECT id, parameters FROM trials")}


def tracked_trial(trial: Trial, parameters: dict[str, int], backbone: BackboneFacts | None) -> TrackedTrial:
    """Returns what trackers are told of a trial that starts on a loaded backbone, None where it was not loaded."""
    configuration: dict[str, Any] = {
        "trial": trial.id,
        "name": trial.name,
        "seed": trial.seed,
        "method": trial.method.kind,
        "settings": trial.method.settings,
        "training": trial.training_settings,
        "data": trial.data.model_dump(mode="json", exclude_none=True),
        "parameters": parameters,
    }
    if trial.train_share < 1.0:
        configuration["train_share"] = trial.train_share
    if reads_model(trial.method.kind):
        configuration["backbone"] = trial.backbone.model_dump(mode="json", exclude_none=True)
    if backbone is not None:
        configuration |= {"layout": backbone.layout, "precision": backbone.precision, "model_hash": backbone.model_hash}
    return TrackedTrial(trial.id, trial.label, json.loads(json.dumps(configuration, default=str)))


class Endings:
    """Says how finished trials ended; each is worked out once, however many trackers ask.

    Args:
        folder: The run's folder.
        draw: Draws a finished trial.
        lines: Gets a line if that fails.
    """

    def __init__(self, folder: Path, draw: Draw | None, lines: deque[str]) -> None:
        self._folder, self._draw, self._lines = folder, draw, lines
        self._lock = threading.Lock()
        self._known: dict[str, Ending] = {}

    def of(self, trial: str) -> Ending:
        """Returns the ending of a trial that the ledger has as done."""
        with self._lock:
            if trial not in self._known:
                result = load_trial(self._folder, trial)
                step = max((step for step, _ in result.losses), default=0)
                self._known[trial] = Ending("done", None, step, final_metrics(result), self._pictures(result))
            return self._known[trial]

    def _pictures(self, result: TrialResult) -> Sequence[Picture]:
        if self._draw is None:
            return ()
        try:
            return self._draw(result)
        except Exception as error:  # noqa: BLE001  numbers without figures are better than none
            self._draw = None
            self._lines.append(f"trackers get no figures: {type(error).__name__}: {error}".splitlines()[0])
            return ()


def final_metrics(trial: TrialResult) -> dict[str, float]:
    """Returns each metric on each labelled split by a name such as `final/test/f1_macro`, and what the trial took."""
    metrics: dict[str, float] = {}
    for split, (labels, _) in trial.predictions.items():
        if len(labels):
            metrics |= {f"final/{split}/{name}": value for name, value in trial.scores(split).items()}
    taken = {name: getattr(trial, name) for name in ("best_step", "seconds", "peak_bytes", "bundle_bytes")}
    metrics |= {f"final/{name}": float(value) for name, value in taken.items() if value is not None}
    return {name: float(value) for name, value in metrics.items() if math.isfinite(value)}
