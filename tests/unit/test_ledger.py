"""The ledger: one writer, nothing forgotten, nothing of a stale process."""

from __future__ import annotations

import hashlib
import json
import math
import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fleetune.engine.events import Evaluated, Finished, Stepped
from fleetune.errors import RunError, RunLockedError, UserError
from fleetune.lab import ledger as ledger_module
from fleetune.lab import test_uses as test_uses_module
from fleetune.lab.ledger import Ledger, LedgerReader
from fleetune.lab.lock import RunLock, is_locked
from fleetune.lab.results import load_results
from fleetune.lab.schema import MIGRATIONS, SCHEMA_VERSION
from fleetune.lab.status import read_status
from fleetune.lab.test_uses import log_test_use, read_test_uses

FIRST_SCRIPT = "254adddcb061ae34818f1228d1f8e3ab708a8f694a04e9781d3d173879de280f"


def row(trial: str, position: int = 0) -> dict[str, Any]:
    return {
        "id": trial, "position": position, "fleet": 0, "name": f"name of {trial}", "data": "d", "backbone": "b",
        "kind": "lora", "settings": {"rank": 8}, "training": {"metric": "accuracy"}, "seed": 0,
        "parameters": {"adapter": 1, "head": 2, "trainable": 3, "total": 9},
        "entry": "lora", "train_share": 1.0, "train_texts": 90,
    }  # fmt: skip


def stepped(trial: str, step: int, loss: float = 0.5) -> Stepped:
    return Stepped(trial, step, 10, step / 10, loss, 1e-3, 1.0, 4, 40)


def finished(trial: str) -> Finished:
    return Finished(trial, 10, 5, False, 1.5, {"test": np.zeros((1, 2), np.float32)})


@pytest.fixture
def ledger(tmp_path: Path) -> Any:
    opened = Ledger(tmp_path)
    opened.begin_attempt({"cores": 2})
    opened.set_meta(metric="accuracy", name="n")
    opened.add_trials([row("a"), row("b", 1)])
    yield opened
    opened.close()


def test_what_is_written_is_read_while_the_writer_lives(ledger: Ledger, tmp_path: Path):
    ledger.start_trial("a")
    ledger.record_step(stepped("a", 1))
    ledger.record_step(stepped("a", 2, 0.25))
    ledger.record_evaluation(Evaluated("a", 2, 0.2, {"accuracy": 0.75, "roc_auc": math.nan}, True))
    with LedgerReader(tmp_path) as reader:
        assert [r["loss"] for r in reader.rows("SELECT loss FROM steps ORDER BY step")] == [0.5, 0.25]
        values = {r["name"]: r["value"] for r in reader.rows("SELECT name, value FROM metrics")}
    assert values == {"accuracy": 0.75, "roc_auc": None}
    first = read_status(tmp_path).trials[0]
    assert (first.step, first.total_steps, first.loss, first.value) == (2, 10, 0.25, 0.75)


def test_a_done_trial_and_its_files_are_on_disk_at_once(ledger: Ledger, tmp_path: Path):
    file = tmp_path / "trials" / "a" / "predictions.parquet"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"abc")
    ledger.add_artifact(file, "predictions", "a")
    ledger.finish_trial(finished("a"), peak_bytes=7, bundle_bytes=3)
    with LedgerReader(tmp_path) as reader:
        (artifact,) = reader.rows("SELECT * FROM artifacts")
        (trial,) = reader.rows("SELECT * FROM trials WHERE status = 'done'")
    assert artifact["path"] == "trials/a/predictions.parquet"
    assert artifact["sha256"] == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert (trial["id"], trial["seconds"], trial["best_step"], trial["peak_bytes"]) == ("a", 1.5, 5, 7)


def test_steps_are_not_flushed_one_by_one_but_after_a_while(
    ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    ledger.record_step(stepped("a", 1))
    with LedgerReader(tmp_path) as reader:
        assert reader.rows("SELECT * FROM steps") == []
        monkeypatch.setattr(ledger_module, "COMMIT_SECONDS", -1.0)
        ledger.record_step(stepped("a", 2))
        assert len(reader.rows("SELECT * FROM steps")) == 2


def test_a_repeated_step_takes_the_place_of_the_lost_one(ledger: Ledger, tmp_path: Path):
    ledger.record_step(stepped("a", 1, 0.9))
    ledger.begin_attempt({})
    ledger.record_step(stepped("a", 1, 0.1))
    ledger.note("said", "so")
    with LedgerReader(tmp_path) as reader:
        assert [(r["loss"], r["attempt"]) for r in reader.rows("SELECT * FROM steps")] == [(0.1, 2)]


def test_a_new_attempt_finds_running_trials_pending_and_failed_ones_failed(ledger: Ledger):
    ledger.start_trial("a")
    ledger.start_trial("b")
    ledger.fail_trial("b", "the loss became nan")
    ledger.begin_attempt({})
    assert ledger.statuses() == {"a": "pending", "b": "failed"}
    ledger.start_trial("b")
    assert ledger.statuses()["b"] == "running"


def test_a_stale_process_commits_nothing(ledger: Ledger, tmp_path: Path):
    other = Ledger(tmp_path)
    other.begin_attempt({})
    with pytest.raises(RunError, match="taken over"):
        ledger.fail_trial("a", "stale")
    assert other.statuses()["a"] == "pending"
    other.fail_trial("a", "fresh")
    other.close()


def test_the_ledger_is_safe_against_power_loss(ledger: Ledger):
    assert ledger._db.execute("PRAGMA journal_mode").fetchone()[0] == "wal"
    assert ledger._db.execute("PRAGMA synchronous").fetchone()[0] == 2


def test_a_newer_or_damaged_ledger_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match="holds no run"):
        LedgerReader(tmp_path)
    Ledger(tmp_path).close()
    with sqlite3.connect(tmp_path / "ledger.sqlite") as db:
        assert db.execute("PRAGMA user_version").fetchone()[0] == SCHEMA_VERSION
        db.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    with pytest.raises(UserError, match="schema version"):
        LedgerReader(tmp_path)
    with pytest.raises(UserError, match="schema version"):
        Ledger(tmp_path)
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    (damaged / "ledger.sqlite").write_bytes(b"no database at all" * 100)
    for opened in (LedgerReader, Ledger):
        with pytest.raises(UserError, match="not a readable ledger"):
            opened(damaged)


def test_a_released_script_never_changes():
    assert hashlib.sha256(MIGRATIONS[0].encode()).hexdigest() == FIRST_SCRIPT


def old_run(folder: Path) -> None:
    """Leaves what the first version of the ledger had of a run with one failed trial and one under way."""
    with sqlite3.connect(folder / "ledger.sqlite") as db:
        db.executescript(f"{MIGRATIONS[0]}; PRAGMA user_version = 1;")
        data = {"d": {"folder": "data", "label_names": ["no", "yes"], "multi_label": False}}
        meta = [("metric", '"accuracy"'), ("name", '"old"'), ("data", json.dumps(data))]
        db.executemany("INSERT INTO meta VALUES (?, ?)", meta)
        columns = "id, position, fleet, name, data, backbone, kind, settings, training, seed, parameters, status"
        for number, (trial, status) in enumerate((("a", "failed"), ("b", "pending"))):
            values = (trial, number, 0, "lora r=2", "d", "m", "lora", "{}", '{"metric": "accuracy"}', 0, "{}", status)
            db.execute(f"INSERT INTO trials ({columns}) VALUES ({', '.join('?' * 12)})", values)
        db.execute("INSERT INTO attempts (started, process, environment) VALUES ('then', '1 on m', '{}')")
        db.execute("INSERT INTO steps VALUES ('b', 1, 1, 0.1, 0.7, 1e-3, 1.0, 4, 40)")
    db.close()


def test_an_old_ledger_is_read_as_it_is_and_knows_nothing_of_what_came_later(tmp_path: Path):
    old_run(tmp_path)
    results = load_results(tmp_path)
    trial = results.trials[1]
    assert (trial.entry, trial.train_share, trial.train_texts) == (None, 1.0, None)
    assert (trial.operations, trial.serving_operations, trial.evaluation_texts_per_second) == (None, None, None)
    assert (results.cost, dict(results.texts), results.test_uses) == ("trainable", {}, [])
    assert [one.label for one in read_status(tmp_path).trials] == ["lora r=2 seed 0"] * 2
    with sqlite3.connect(tmp_path / "ledger.sqlite") as db:
        assert db.execute("PRAGMA user_version").fetchone()[0] == 1
    db.close()


@pytest.mark.parametrize("seen_before", [False, True])
def test_an_old_ledger_becomes_a_new_one_and_loses_nothing(tmp_path: Path, seen_before: bool):
    old_run(tmp_path)
    if seen_before:
        assert log_test_use(tmp_path, "compare", "accuracy", 1)
    ledger = Ledger(tmp_path)
    ledger.begin_attempt({})
    ledger.record_step(stepped("b", 2))
    ledger.record_evaluation(Evaluated("b", 2, 0.2, {"accuracy": 0.5}, True, texts=7, seconds=0.5))
    assert ledger.evaluations_of("b") == 1
    ledger.finish_trial(Finished("b", 2, 2, False, 1.5, {}, None, 5, 0.25), 7, 3, 1e9, 1e6)
    ledger.close()
    with LedgerReader(tmp_path) as reader:
        (failed, done) = reader.rows("SELECT * FROM trials ORDER BY position")
        uses = read_test_uses(reader)
    assert (failed["status"], failed["train_share"], failed["operations"]) == ("failed", 1.0, None)
    assert (done["status"], done["operations"], done["serving_operations"]) == ("done", 1e9, 1e6)
    assert (done["evaluation_texts"], done["evaluation_seconds"]) == (12, 0.75)
    assert len(uses) == seen_before


def test_evaluations_add_up_over_attempts_and_a_repeated_one_counts_once(ledger: Ledger, tmp_path: Path):
    def evaluated(step: int) -> Evaluated:
        return Evaluated("a", step, step / 10, {"accuracy": 0.5, "loss": 0.7}, True, texts=20, seconds=0.5)

    ledger.record_evaluation(evaluated(2))
    ledger.begin_attempt({})
    ledger.record_evaluation(evaluated(2))
    ledger.record_evaluation(evaluated(4))
    assert (ledger.evaluations_of("a"), ledger.evaluations_of("b")) == (2, 0)
    ledger.finish_trial(Finished("a", 4, 2, False, 1.5, {}, None, 10, 0.25), 7, 3)
    with LedgerReader(tmp_path) as reader:
        (row,) = reader.rows("SELECT evaluation_texts, evaluation_seconds FROM trials WHERE id = 'a'")
    assert tuple(row) == (2 * 20 + 10, 2 * 0.5 + 0.25)


def test_a_look_at_test_scores_is_logged_beside_a_living_writer(ledger: Ledger, tmp_path: Path):
    ledger.start_trial("a")
    assert log_test_use(tmp_path, "compare", "accuracy", 2)
    ledger.record_step(stepped("a", 1))
    ledger.fail_trial("a", "no matter")
    assert log_test_use(tmp_path, "report", "f1_macro", 3)
    with LedgerReader(tmp_path) as reader:
        uses = read_test_uses(reader)
    assert [(use.command, use.metric, use.configurations) for use in uses] == [
        ("compare", "accuracy", 2),
        ("report", "f1_macro", 3),
    ]
    assert uses[0].time <= uses[1].time and uses[0].time.endswith("+00:00")


def test_a_look_that_cannot_be_logged_harms_nothing(ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(test_uses_module, "WAIT_SECONDS", 0.05)
    ledger.record_step(stepped("a", 1))
    assert not log_test_use(tmp_path, "compare", "accuracy", 1)
    ledger.note("said", "so")
    assert log_test_use(tmp_path, "compare", "accuracy", 1)
    elsewhere = tmp_path / "elsewhere"
    assert not log_test_use(elsewhere, "compare", "accuracy", 1)
    assert not elsewhere.exists()
    elsewhere.mkdir()
    assert not log_test_use(elsewhere, "compare", "accuracy", 1)
    assert not list(elsewhere.iterdir())
    (elsewhere / "ledger.sqlite").write_bytes(b"no database at all" * 100)
    assert not log_test_use(elsewhere, "compare", "accuracy", 1)


HOLD = """
import sys, time
from pathlib import Path
from fleetune.lab.lock import RunLock
with RunLock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_folder_is_locked_while_its_process_lives_and_free_when_it_is_killed(tmp_path: Path):
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        assert is_locked(tmp_path)
        with pytest.raises(RunLockedError, match=f"process {process.pid}"), RunLock(tmp_path):
            pass
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert not is_locked(tmp_path)
        with RunLock(tmp_path):
            assert is_locked(tmp_path)
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()
