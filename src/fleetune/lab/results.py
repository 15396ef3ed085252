"""What a run's folder holds, as comparison and report read it."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from fleetune.compare.costs import Cost
from fleetune.compare.held_out import HeldOutTexts, TestUse
from fleetune.compare.result import TrialResult, TrialStatus
from fleetune.compare.stored import StepLosses
from fleetune.errors import RunError, UserError
from fleetune.lab.disk import storage_error
from fleetune.lab.folder import TRIAL_ID, RunFolder
from fleetune.lab.frozen import frozen_text
from fleetune.lab.held_out import KeptTexts
from fleetune.lab.kept_files import refuse_damaged, refuse_damaged_data
from fleetune.lab.ledger import LedgerReader, Row, value_of
from fleetune.lab.lock import is_locked
from fleetune.lab.predictions import KeptPredictions
from fleetune.lab.test_uses import read_test_uses

DAMAGE = (sqlite3.Error, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError, OSError)
"""What reading a ledger of nonsense raises."""


@dataclass(frozen=True)
class RunResults:
    """Everything a run left behind.

    Attributes:
        name: Name of the recipe.
        folder: The run's folder.
        recipe_text: The frozen recipe.
        trials: The trials in the order of the recipe.
        audits: The audit of each data set.
        environment: The machine of the last attempt.
        command: What repeats the run.
        hashes: SHA-256 of recipe, data and backbones, by what they are of.
        attempts: When each process took the run up, and how it left it.
        cost: By which cost the cheapest of equals is chosen: `trainable`, `bundle_bytes`, `seconds` or `serving`.
        texts: The texts of validation and test by data name and split, in the order of the predictions; older runs
            have none.
        test_uses: Each time scores on the test split were shown.
    """

    name: str
    folder: Path
    recipe_text: str
    trials: list[TrialResult]
    audits: list[dict[str, Any]]
    environment: dict[str, Any]
    command: str
    hashes: Mapping[str, str] = field(default_factory=dict)
    attempts: list[dict[str, Any]] = field(default_factory=list)
    cost: Cost = "trainable"
    texts: Mapping[str, Mapping[str, HeldOutTexts]] = field(default_factory=dict)
    test_uses: list[TestUse] = field(default_factory=list)


def load_results(folder: Path) -> RunResults:
    """Returns the results of the run in `folder`, also while it runs.

    Raises:
        UserError: If there is no run.
        RunError: If a file of it is damaged.
    """
    with _refusing_damage(folder):
        return _load_results(folder)


def _load_results(folder: Path) -> RunResults:
    place = RunFolder(folder)
    with LedgerReader(folder) as ledger:
        ledger.check_seal()
        meta = ledger.meta()
        alive = is_locked(folder)
        attempts = [dict(row) for row in ledger.rows("SELECT * FROM attempts ORDER BY id")]
        speeds = _speeds(ledger)
        kept = KeptPredictions()
        trials = [
            _trial(row, place, ledger, meta, alive, speeds, kept)
            for row in ledger.rows("SELECT * FROM trials ORDER BY position")
        ]
        test_uses = read_test_uses(ledger)
        data = {name: _inside(folder, facts["folder"]) for name, facts in meta.get("data", {}).items()}
        refuse_damaged_data(ledger, folder, [_audit_file(one) for one in data.values()])
        audits = [_audit(one) for one in data.values()]
    recipe_text = frozen_text(place, meta)
    environment = json.loads(attempts[-1].pop("environment")) if attempts else {}
    for attempt in attempts:
        attempt.pop("environment", None)
    return RunResults(
        name=meta.get("name", folder.name),
        folder=folder,
        recipe_text=recipe_text,
        trials=trials,
        audits=audits,
        environment=environment,
        hashes=_hashes(recipe_text, meta),
        command=meta.get("command", ""),
        attempts=attempts,
        cost=meta.get("cost", "trainable"),
        texts=KeptTexts(
            {name: place.held_out(one) for name, one in data.items()}, partial(_refuse_damaged_texts, folder)
        ),
        test_uses=test_uses,
    )


def _refuse_damaged_texts(folder: Path, path: Path) -> None:
    """Compares a file of held-out texts with what the ledger has now: it is large, and read later or not at all."""
    with _refusing_damage(folder), LedgerReader(folder) as ledger:
        refuse_damaged_data(ledger, folder, [path])


def _hashes(recipe_text: str, meta: dict[str, Any]) -> dict[str, str]:
    """Returns SHA-256 of the recipe, of each data set's texts and labels, and of each backbone, by what it is of."""
    found = {"recipe": hashlib.sha256(recipe_text.encode()).hexdigest()} if recipe_text else {}
    found |= {f"data {name}": str(facts["hash"]) for name, facts in meta.get("data", {}).items() if facts.get("hash")}
    models = [facts["model_hash"] for facts in meta.get("backbones", {}).values() if facts.get("model_hash")]
    of_several = len(set(models)) > 1
    for number, one in enumerate(dict.fromkeys(models), start=1):
        found[f"backbone {number}" if of_several else "backbone"] = str(one)
    return found


def load_trial(folder: Path, trial: str) -> TrialResult:
    """Returns the result of one trial of the run in `folder`, also while others of it train.

    Raises:
        UserError: If there is no run, or no such trial in it.
        RunError: If a file of it is damaged.
    """
    with _refusing_damage(folder), LedgerReader(folder) as ledger:
        rows = ledger.rows("SELECT * FROM trials WHERE id = ?", trial)
        if not rows:
            raise UserError(f"{folder} has no trial {trial}.\nType: fleetune status {folder}")
        return _trial(
            rows[0], RunFolder(folder), ledger, ledger.meta(), is_locked(folder), _speeds(ledger), KeptPredictions()
        )


def _trial(
    row: Row,
    place: RunFolder,
    ledger: LedgerReader,
    meta: dict[str, Any],
    alive: bool,
    speeds: dict[int, tuple[float, float]],
    kept: KeptPredictions,
) -> TrialResult:
    if not TRIAL_ID.fullmatch(row["id"]):
        raise ValueError(f"{row['id'][:40]!r} is no trial's id")
    data = meta["data"][row["data"]]
    backbone = meta.get("backbones", {}).get(row["id"], {})
    training = json.loads(row["training"])
    done = row["status"] == "done"
    if done:
        refuse_damaged(ledger, place.path, row["id"], ["predictions"])
    texts, tokens = speeds.get(row["fleet"], (None, None))
    return TrialResult(
        id=row["id"],
        data=row["data"],
        backbone=row["backbone"],
        method=row["name"],
        kind=row["kind"],
        settings=json.loads(row["settings"]),
        seed=row["seed"],
        status=_status(row["status"], alive),
        metric=training["metric"],
        label_names=data["label_names"],
        multi_label=data["multi_label"],
        training=training,
        reason=row["reason"],
        predictions=kept.of(place.predictions(row["id"]), row["data"]) if done else {},
        history=_history(ledger, row["id"]),
        losses=_losses(ledger, row["id"]),
        parameters=json.loads(row["parameters"]),
        seconds=row["seconds"] if done else None,
        peak_bytes=row["peak_bytes"],
        bundle_bytes=row["bundle_bytes"],
        best_step=row["best_step"],
        stopped_early=bool(row["stopped_early"]),
        entry=value_of(row, "entry"),
        train_share=value_of(row, "train_share", 1.0),
        train_texts=value_of(row, "train_texts"),
        operations=value_of(row, "operations"),
        serving_operations=value_of(row, "serving_operations"),
        evaluation_texts_per_second=_rate(value_of(row, "evaluation_texts"), value_of(row, "evaluation_seconds")),
        texts_per_second=texts,
        tokens_per_second=tokens,
        layout=backbone.get("layout"),
        layout_reason=backbone.get("layout_reason"),
        precision=backbone.get("precision"),
        notes=list(backbone.get("notes", [])),
    )


@contextmanager
def _refusing_damage(folder: Path) -> Iterator[None]:
    """Turns what a damaged ledger leads to into one error that says so."""
    try:
        yield
    except DAMAGE as error:
        if isinstance(error, sqlite3.Error | OSError) and (named := storage_error(error, folder)) is not None:
            raise named from None
        first = (str(error).strip().splitlines() or [""])[0]
        raise RunError(
            f"{folder} cannot be read: its ledger, or a file that it names, is damaged "
            f"({type(error).__name__}: {first[:160]}).\nRun the recipe again with another --out"
        ) from None


def _inside(folder: Path, name: str) -> Path:
    """Returns the path of what the ledger names, which is never outside the run's folder."""
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"{name[:80]!r} is outside the run's folder")
    return path


def _rate(number: float | None, seconds: float | None) -> float | None:
    return number / seconds if number and seconds else None


def _status(stored: str, alive: bool) -> TrialStatus:
    """Returns the status; a trial that runs in no living process waits to be taken up again."""
    match stored:
        case "done" | "failed":
            return stored
        case "running" if alive:
            return "running"
        case _:
            return "pending"


def _history(ledger: LedgerReader, trial: str) -> list[dict[str, Any]]:
    history: dict[int, dict[str, Any]] = {}
    query = "SELECT step, epoch, name, value, best FROM metrics WHERE trial = ? ORDER BY step, name"
    for row in ledger.rows(query, trial):
        entry = {"step": row["step"], "epoch": row["epoch"], "best": bool(row["best"]), "metrics": {}}
        metrics = history.setdefault(row["step"], entry)["metrics"]
        metrics[row["name"]] = float("nan") if row["value"] is None else row["value"]
    return list(history.values())


def _losses(ledger: LedgerReader, trial: str) -> StepLosses:
    query = "SELECT step, loss FROM steps WHERE trial = ? AND loss IS NOT NULL ORDER BY step"
    rows = np.array([tuple(row) for row in ledger.rows(query, trial)], dtype=np.float64).reshape(-1, 2)
    return StepLosses(rows[:, 0].astype(np.int64), rows[:, 1].copy())


def _speeds(ledger: LedgerReader) -> dict[int, tuple[float, float]]:
    """Returns texts and tokens a second of each fleet; its trials' seconds are shares that add up to its own."""
    counted = ledger.rows(
        "SELECT fleet, sum(texts) AS texts, sum(tokens) AS tokens FROM steps JOIN trials ON trials.id = steps.trial "
        "WHERE status = 'done' GROUP BY fleet"
    )
    taken = ledger.rows("SELECT fleet, sum(seconds) AS seconds FROM trials WHERE status = 'done' GROUP BY fleet")
    seconds = {row["fleet"]: row["seconds"] for row in taken}
    return {
        row["fleet"]: (row["texts"] / seconds[row["fleet"]], row["tokens"] / seconds[row["fleet"]])
        for row in counted
        if seconds.get(row["fleet"])
    }


def _audit_file(folder: Path) -> Path:
    return folder / "audit.json"


def _audit(folder: Path) -> dict[str, Any]:
    path = _audit_file(folder)
    return dict(json.loads(path.read_text("utf-8"))) if path.exists() else {}
