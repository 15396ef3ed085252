"""What a run's folder holds, read with nothing but SQLite, Parquet and JSON."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
from numpy.typing import NDArray

from tests.recomputed import scores

BASELINES = frozenset({"majority", "tfidf", "zero_shot"})
FLOOR = "majority"
PLAIN_LOSS = {"loss": "cross_entropy", "class_weights": "none"}


@dataclass
class Trial:
    """One row of the ledger with its predictions."""

    row: dict[str, Any]
    label_names: list[str]
    several: bool
    predictions: dict[str, tuple[NDArray[Any], NDArray[np.float64]]]
    history: list[tuple[int, float, dict[str, float]]] = field(default_factory=list)
    losses: list[tuple[int, float]] = field(default_factory=list)
    training_rate: float | None = None

    def __post_init__(self) -> None:
        self.training: dict[str, Any] = json.loads(self.row["training"])
        self.settings: dict[str, Any] = self.training | json.loads(self.row["settings"])
        self.parameters: dict[str, int] = json.loads(self.row["parameters"])
        self._kept: dict[tuple[str, str], float] = {}

    @property
    def key(self) -> tuple[str, ...]:
        """What the seeds of one configuration share."""
        shared = {name: value for name, value in self.training.items() if name not in ("seed", "seeds")}
        words = [self.row[name] for name in ("data", "backbone", "name", "kind")]
        return (*words, json.dumps([json.loads(self.row["settings"]), shared], sort_keys=True))

    @property
    def share(self) -> float:
        return float(self.row.get("train_share") or 1.0)

    @property
    def is_done(self) -> bool:
        return bool(self.row["status"] == "done")

    @property
    def is_baseline(self) -> bool:
        return self.row["kind"] in BASELINES

    @property
    def entry(self) -> str:
        return self.row.get("entry") or self.row["kind"]

    @property
    def evaluation_rate(self) -> float | None:
        texts, seconds = self.row.get("evaluation_texts"), self.row.get("evaluation_seconds")
        return texts / seconds if texts and seconds else None

    @cached_property
    def thresholds(self) -> NDArray[np.float64]:
        """By which texts other than validation's are judged `(labels,)`."""
        rule = self.training.get("thresholds", 0.5)
        if rule != "tuned":
            return np.full(len(self.label_names), float(rule))
        held = self.predictions.get("validation")
        if held is None or not len(held[0]):
            return np.full(len(self.label_names), 0.5)
        return scores.tuned(held[0], scores.probabilities(held[1], True))

    @cached_property
    def temperature(self) -> float:
        """What logits are divided by, fitted on validation."""
        held = self.predictions.get("validation")
        return 1.0 if held is None else scores.temperature(*held, self.several)

    def thresholds_on(self, split: str) -> NDArray[np.float64]:
        """By which the texts of a split are judged: those of validation by the other folds' `(texts, labels)`."""
        labels, logits = self.predictions[split]
        if split != "validation" or self.training.get("thresholds", 0.5) != "tuned":
            return np.broadcast_to(self.thresholds, logits.shape)
        return scores.cross_fitted(labels, scores.probabilities(logits, True))

    def texts(self, split: str) -> int:
        return len(self.predictions[split][0]) if split in self.predictions else 0

    def probabilities(self, split: str) -> NDArray[np.float64]:
        return scores.probabilities(self.predictions[split][1], self.several)

    def has_numbers(self, split: str) -> bool:
        return bool(np.isfinite(self.predictions[split][1]).all())

    def decided(self, split: str) -> NDArray[np.int64]:
        """Classes `(texts,)`, or 0/1 `(texts, labels)`."""
        found = self.probabilities(split)
        if self.several:
            return (found >= self.thresholds_on(split)).astype(np.int64)
        return found.argmax(axis=1)

    def right(self, split: str) -> NDArray[np.bool_]:
        same = self.decided(split) == self.predictions[split][0]
        return np.asarray(same.all(axis=1) if self.several else same)

    def score(self, split: str, metric: str) -> float:
        if (split, metric) not in self._kept:
            self._kept[split, metric] = self.judged(split).score(metric)
        return self._kept[split, metric]

    def judged(self, split: str, part: NDArray[np.int64] | None = None) -> scores.Judged:
        part = np.arange(self.texts(split)) if part is None else part
        labels, logits = self.predictions[split]
        return scores.Judged(labels[part], logits[part], self.decided(split)[part], self.several)

    def sets(self, values: NDArray[Any]) -> NDArray[np.bool_]:
        """Labels or decisions as whether each text has each label."""
        return values == 1 if self.several else values[:, None] == np.arange(len(self.label_names))


@dataclass
class Texts:
    """The words of one split."""

    texts: list[str]
    places: list[str]
    tokens: list[int]
    columns: dict[str, list[str]]


@dataclass
class Stored:
    """A run's folder."""

    folder: Path
    trials: list[Trial]
    data: dict[str, dict[str, Any]]
    cost: str
    looks: list[dict[str, Any]]

    @cached_property
    def comparison(self) -> dict[str, Any]:
        return dict(json.loads((self.folder / "report" / "comparison.json").read_text("utf-8")))

    @property
    def page(self) -> str:
        return (self.folder / "report" / "index.html").read_text("utf-8")

    def audit(self, name: str) -> dict[str, Any]:
        path = self.folder / self.data[name]["folder"] / "audit.json"
        return dict(json.loads(path.read_text("utf-8"))) if path.exists() else {}

    def texts(self, name: str, split: str) -> Texts | None:
        """The texts of a split, in the order of the predictions; None where the run has not kept them."""
        path = self.folder / self.data[name]["folder"] / "held_out.parquet"
        if not path.exists():
            return None
        table = pyarrow.parquet.read_table(path)
        columns = list(json.loads(table.schema.metadata[b"fleetune"])["slices"])
        rows = [row for row in table.to_pylist() if row["split"] == split]
        return Texts(
            [" ⟷ ".join([row["text"], *([row["text_pair"]] if "text_pair" in row else [])]) for row in rows],
            [row["place"] for row in rows],
            [row["tokens"] for row in rows],
            {name: [row[f"slice_{number}"] for row in rows] for number, name in enumerate(columns)},
        )


def read_run(folder: Path) -> Stored:
    """Returns all of a run that its report is made from."""
    with closing(sqlite3.connect(f"{(folder / 'ledger.sqlite').resolve().as_uri()}?mode=ro", uri=True)) as db:
        db.row_factory = sqlite3.Row
        meta = {row["key"]: json.loads(row["value"]) for row in db.execute("SELECT key, value FROM meta")}
        rows = _rows(db, "SELECT * FROM trials ORDER BY position")
        metrics = _rows(db, "SELECT * FROM metrics ORDER BY step")
        steps = _rows(db, "SELECT * FROM steps ORDER BY step")
        tables = {row["name"] for row in _rows(db, "SELECT name FROM sqlite_master")}
        looks = _rows(db, "SELECT * FROM test_uses ORDER BY id") if "test_uses" in tables else []
    trials = [_trial(row, folder, meta["data"][row["data"]]) for row in rows]
    for trial in trials:
        own = [one for one in metrics if one["trial"] == trial.row["id"]]
        for step in dict.fromkeys(one["step"] for one in own):
            at = [one for one in own if one["step"] == step]
            values = {one["name"]: float("nan") if one["value"] is None else one["value"] for one in at}
            trial.history.append((step, at[0]["epoch"], values))
        trial.losses = [
            (one["step"], one["loss"]) for one in steps if one["trial"] == trial.row["id"] and one["loss"] is not None
        ]
        trial.training_rate = _training_rate(trial, trials, steps)
    return Stored(folder, trials, meta["data"], meta.get("cost", "trainable"), looks)


def _rows(db: sqlite3.Connection, query: str) -> list[dict[str, Any]]:
    return [dict(row) for row in db.execute(query)]


def _trial(row: dict[str, Any], folder: Path, data: dict[str, Any]) -> Trial:
    path = folder / "trials" / row["id"] / "predictions.parquet"
    found = _predictions(path, data["multi_label"]) if row["status"] == "done" else {}
    return Trial(row, data["label_names"], data["multi_label"], found)


def _predictions(path: Path, several: bool) -> dict[str, tuple[NDArray[Any], NDArray[np.float64]]]:
    """Returns labels and logits by split; a split without labels, of which nothing can be said, is left out."""
    frame = pyarrow.parquet.read_table(path).to_pandas()
    count = sum(str(name).startswith("logit_") for name in frame.columns)
    names = [f"label_{number}" for number in range(count)] if several else ["label"]
    found = {}
    for split in frame["split"].unique():
        part = frame[frame["split"] == split]
        labels = part[names]
        if labels.isna().to_numpy().any():
            continue
        values = labels.to_numpy(dtype=np.int64)
        logits = part[[f"logit_{number}" for number in range(count)]].to_numpy(dtype=np.float64)
        found[str(split)] = (values if several else values[:, 0], logits)
    return found


def _training_rate(trial: Trial, trials: Sequence[Trial], steps: Sequence[dict[str, Any]]) -> float | None:
    """Returns the texts a second of a trial's fleet: of its finished trials, whose seconds add up to its own."""
    fleet = {
        one.row["id"]: one.row["seconds"] for one in trials if one.is_done and one.row["fleet"] == trial.row["fleet"]
    }
    texts, seconds = [one["texts"] for one in steps if one["trial"] in fleet], sum(fleet.values())
    return sum(texts) / seconds if texts and seconds else None
