"""The ledger: one writer, nothing forgotten, nothing of a stale process."""

from __future__ import annotations

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
from fleetune.lab.ledger import Ledger, LedgerReader
from fleetune.lab.lock import RunLock, is_locked
from fleetune.lab.schema import SCHEMA_VERSION
from fleetune.lab.status import read_status


def row(trial: str, position: int = 0) -> dict[str, Any]:
    return {
        "id": trial, "position": position, "fleet": 0, "name": f"name of {trial}", "data": "d", "backbone": "b",
        "kind": "lora", "settings": {"rank": 8}, "training": {"metric": "accuracy"}, "seed": 0,
        "parameters": {"adapter": 1, "head": 2, "trainable": 3, "total": 9},
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
