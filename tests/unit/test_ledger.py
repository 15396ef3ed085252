"""The ledger: one writer, nothing forgotten, nothing of a stale process."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fleetune.engine.events import Evaluated, Finished, Stepped
from fleetune.errors import RunLockedError, RunTakenOverError, StorageError, UserError
from fleetune.lab import database as database_module
from fleetune.lab import ledger as ledger_module
from fleetune.lab import lock as lock_module
from fleetune.lab import schema as schema_module
from fleetune.lab import test_uses as test_uses_module
from fleetune.lab.ledger import Ledger, LedgerReader
from fleetune.lab.lock import RunLock, is_locked
from fleetune.lab.results import load_results
from fleetune.lab.schema import MIGRATIONS, SCHEMA_VERSION, statements
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


def contents(folder: Path) -> dict[str, list[tuple[Any, ...]]]:
    """Returns every row of every table."""
    with LedgerReader(folder) as reader:
        tables = [name["name"] for name in reader.rows("SELECT name FROM sqlite_master WHERE type = 'table'")]
        return {table: [tuple(one) for one in reader.rows(f"SELECT * FROM {table}")] for table in tables}


def slow_step(ledger: Ledger) -> None:
    ledger._last_commit -= ledger_module.COMMIT_SECONDS
    ledger.record_step(stepped("a", 3))


def into_the_folder(ledger: Ledger) -> None:
    with ledger.transaction():
        (ledger.folder / "recipe.toml").write_text("of a stale process")


WRITES: dict[str, Callable[[Ledger], Any]] = {
    "begin": lambda ledger: ledger.begin_attempt({}),
    "end": lambda ledger: ledger.end_attempt("done"),
    "meta": lambda ledger: ledger.set_meta(name="stale"),
    "trials": lambda ledger: ledger.add_trials([row("stale", 7)]),
    "start": lambda ledger: ledger.start_trial("a"),
    "step": slow_step,
    "evaluation": lambda ledger: ledger.record_evaluation(Evaluated("a", 3, 0.3, {"accuracy": 0.1}, True)),
    "finish": lambda ledger: ledger.finish_trial(finished("a"), 1, 1),
    "forget": lambda ledger: ledger.forget_course("a"),
    "forget a part": lambda ledger: ledger.forget_beyond("a", 0),
    "fail": lambda ledger: ledger.fail_trial("a", "stale"),
    "artifact": lambda ledger: ledger.add_artifact(ledger.folder / "recipe.toml", "recipe"),
    "note": lambda ledger: ledger.note("said", "stale"),
    "file": into_the_folder,
}


def test_each_method_that_writes_is_tried_by_a_stale_process():
    read_only = {"close", "attempt", "rows", "evaluations_of", "statuses", "meta", "trial_keys"}
    public = {name for name in vars(Ledger) if not name.startswith("_")} - read_only
    assert len(public) == len(WRITES), public


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_a_stale_process_commits_nothing(write: Callable[[Ledger], Any], ledger: Ledger, tmp_path: Path):
    (tmp_path / "recipe.toml").write_text("of the process that has the run")
    ledger.record_step(stepped("a", 1))
    other = Ledger(tmp_path)
    other.begin_attempt({})
    before = contents(tmp_path)
    with pytest.raises(RunTakenOverError, match="taken over by another process"):
        write(ledger)
    ledger.close()
    assert contents(tmp_path) == before
    assert (tmp_path / "recipe.toml").read_text() == "of the process that has the run"
    other.fail_trial("a", "fresh")
    assert other.statuses()["a"] == "failed"
    other.close()


def test_steps_not_yet_written_are_not_committed_by_closing_a_stale_ledger(ledger: Ledger, tmp_path: Path):
    ledger.record_step(stepped("a", 1))
    other = Ledger(tmp_path)
    other.begin_attempt({})
    other.close()
    before = contents(tmp_path)
    with pytest.raises(RunTakenOverError):
        ledger.close()
    assert contents(tmp_path) == before


@pytest.mark.parametrize("then", ["nothing", "another run", "its copy"])
def test_a_folder_that_is_moved_away_takes_no_more_rows(then: str, tmp_path: Path):
    """Files would be written where the folder was, and rows go where it is now."""
    place, moved = tmp_path / "run", tmp_path / "moved"
    place.mkdir()
    opened = Ledger(place)
    opened.begin_attempt({})
    opened.record_step(stepped("a", 1))
    place.rename(moved)
    if then == "another run":
        place.mkdir()
        Ledger(place).close()
    elif then == "its copy":
        shutil.copytree(moved, place)
    before = {folder: contents(folder) for folder in tmp_path.iterdir()}
    with pytest.raises(StorageError, match=r"was moved, deleted or replaced.*\nGo on where it is now"):
        opened.set_meta(late=1)
    opened.close()
    assert {folder: contents(folder) for folder in tmp_path.iterdir()} == before


def test_no_process_takes_over_while_another_writes_and_none_writes_after(
    ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(database_module, "BUSY_SECONDS", 0.05)
    other = Ledger(tmp_path)
    with ledger.transaction():
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            other.begin_attempt({})
        ledger.note("said", "in time")
    # What it has read before the other began must not make it believe that it still has the run.
    reading = ledger._db.execute("SELECT id FROM trials")
    assert reading.fetchone()["id"] == "a"
    other.begin_attempt({})
    with pytest.raises(sqlite3.OperationalError, match="locked"):
        ledger.note("said", "too late, and from an old state")
    reading.close()
    with pytest.raises(RunTakenOverError):
        ledger.note("said", "too late")
    other.close()
    assert [one[5] for one in contents(tmp_path)["events"]] == ["in time"]


def test_what_fails_inside_writes_nothing_and_what_waited_is_kept(ledger: Ledger, tmp_path: Path):
    @contextmanager
    def failing() -> Iterator[None]:
        with ledger.transaction():
            ledger.note("said", "first")
            yield
            raise OSError(28, "No space left on device")

    ledger.record_step(stepped("a", 1))
    before = contents(tmp_path)
    with pytest.raises(OSError, match="No space"), failing():
        ledger.fail_trial("a", "not to be")
    assert contents(tmp_path) == before
    ledger.note("said", "second")
    after = contents(tmp_path)
    assert [one[5] for one in after["events"]] == ["second"] and len(after["steps"]) == 1


def test_a_clock_that_is_set_back_changes_nothing(ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    moments = iter(datetime(2030, 1, 1, tzinfo=UTC) - timedelta(days=n) for n in range(100))
    monkeypatch.setattr(ledger_module, "_now", lambda: next(moments).isoformat())
    ledger.set_meta(data={"d": {"folder": "data", "label_names": ["no", "yes"], "multi_label": False}})
    ledger.end_attempt("interrupted")
    ledger.begin_attempt({"cores": 3})
    ledger.start_trial("a")
    ledger.begin_attempt({"cores": 4})
    assert ledger.statuses()["a"] == "pending"
    assert [attempt["id"] for attempt in read_status(tmp_path).attempts] == [1, 2, 3]
    started = [attempt["started"] for attempt in read_status(tmp_path).attempts[1:]]
    assert started == sorted(started, reverse=True)
    assert load_results(tmp_path).environment == {"cores": 4}


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


@pytest.mark.parametrize("table", ["steps", "metrics"])
def test_rows_of_a_trial_that_is_none_are_damage(table: str, ledger: Ledger, tmp_path: Path):
    """One bit of an id that changed: the row would be read as nobody's, and the trial's curve would have a gap."""
    ledger.record_step(stepped("a", 1))
    ledger.record_evaluation(Evaluated("a", 1, 0.1, {"accuracy": 0.5}, True))
    ledger.close()
    Ledger(tmp_path).close()
    with closing(sqlite3.connect(tmp_path / "ledger.sqlite")) as db, db:
        assert db.execute(f"UPDATE {table} SET trial = 'e'").rowcount == 1
    with pytest.raises(StorageError, match=rf"ledger.sqlite is damaged \(.*{table}.*trials") as error:
        Ledger(tmp_path)
    assert len(str(error.value).splitlines()) == 2


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


KILLED = """
import os, sqlite3, sys
from pathlib import Path
from fleetune.lab.schema import migrate
for number in range(100):
    if os.fork() == 0:
        db = sqlite3.connect(Path(sys.argv[1]) / "ledger.sqlite", isolation_level=None)
        left = [number]
        def die_later(statement):
            left[0] -= 1
            if left[0] < 0:
                os.kill(os.getpid(), 9)
        db.set_trace_callback(die_later)
        migrate(db)
        db.set_trace_callback(None)
        os._exit(0)
    _, status = os.wait()
    db = sqlite3.connect(Path(sys.argv[1]) / "ledger.sqlite")
    columns = [row[1] for row in db.execute("PRAGMA table_info(trials)")]
    print(os.WIFSIGNALED(status), db.execute("PRAGMA user_version").fetchone()[0], "entry" in columns, flush=True)
    db.close()
    if not os.WIFSIGNALED(status):
        break
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_migration_that_is_killed_at_any_statement_has_not_begun(tmp_path: Path):
    old_run(tmp_path)
    with sqlite3.connect(tmp_path / "ledger.sqlite") as db:
        db.execute("PRAGMA journal_mode = WAL")
    db.close()
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], capture_output=True, text=True, check=True)
    *killed, last = done.stdout.splitlines()
    # At the least BEGIN, each statement, the version and COMMIT.
    assert len(killed) > len(list(statements(MIGRATIONS[1]))) + 2
    assert set(killed) <= {f"True {version} {version > 1}" for version in range(1, SCHEMA_VERSION + 1)}
    assert killed[0] == "True 1 False" and last == f"False {SCHEMA_VERSION} True"
    with LedgerReader(tmp_path) as reader:
        assert [tuple(one) for one in reader.rows("SELECT id, status, train_share FROM trials")] == [
            ("a", "failed", 1.0), ("b", "pending", 1.0),
        ]  # fmt: skip
        assert len(reader.rows("SELECT * FROM steps")) == 1


@pytest.mark.parametrize("version", range(SCHEMA_VERSION + 1))
def test_each_released_version_becomes_the_newest_and_keeps_its_rows(version: int, tmp_path: Path):
    with sqlite3.connect(tmp_path / "ledger.sqlite") as db:
        for script in MIGRATIONS[:version]:
            db.executescript(script)
        db.execute(f"PRAGMA user_version = {version}")
        if version:
            db.execute("INSERT INTO attempts (started, process, environment) VALUES ('then', '1 on m', '{}')")
            db.execute("INSERT INTO events (attempt, time, kind, detail) VALUES (1, 'then', 'said', 'so')")
    db.close()
    Ledger(tmp_path).close()
    after = contents(tmp_path)
    assert len(after["events"]) == len(after["attempts"]) == (1 if version else 0)
    fresh = tmp_path / "fresh"
    fresh.mkdir()
    Ledger(fresh).close()
    schema = "SELECT name, type FROM pragma_table_info('trials') ORDER BY name"
    with LedgerReader(tmp_path) as one, LedgerReader(fresh) as other:
        assert [tuple(r) for r in one.rows(schema)] == [tuple(r) for r in other.rows(schema)]


def test_a_seal_outlives_a_migration_that_nothing_follows(
    ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """As where another recipe is refused right after it, or the process is killed."""
    ledger.end_attempt("done")
    ledger.close()
    newer = (*MIGRATIONS, "ALTER TABLE trials ADD COLUMN more TEXT;")
    monkeypatch.setattr(schema_module, "MIGRATIONS", newer)
    monkeypatch.setattr(schema_module, "SCHEMA_VERSION", len(newer))
    for _ in range(2):
        Ledger(tmp_path).close()
    with LedgerReader(tmp_path) as reader:
        reader.check_seal()
        assert reader.rows("SELECT more FROM trials")[0]["more"] is None
    with sqlite3.connect(tmp_path / "ledger.sqlite") as db:
        db.execute("UPDATE trials SET more = 'changed'")
    db.close()
    with pytest.raises(StorageError, match="damaged"):
        Ledger(tmp_path)


def test_a_ledger_without_a_table_holds_no_run_yet(tmp_path: Path):
    sqlite3.connect(tmp_path / "ledger.sqlite").close()
    with pytest.raises(UserError, match="holds no run yet: it was stopped before anything was recorded"):
        read_status(tmp_path)


def test_a_script_comes_apart_into_its_statements():
    for script in MIGRATIONS:
        assert all(sqlite3.complete_statement(one) for one in statements(script) if one.strip())
        assert "".join(statements(script)).strip() == script.strip()
    assert len(list(statements("SELECT 1; -- one; two\nSELECT ';';\nSELECT 3"))) == 3


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
    with ledger.transaction():
        assert not log_test_use(tmp_path, "compare", "accuracy", 1)
    ledger.note("said", "so")
    assert log_test_use(tmp_path, "compare", "accuracy", 1)
    with monkeypatch.context() as patched:
        patched.setattr(test_uses_module, "network_type", lambda folder: "nfs4")
        assert not log_test_use(tmp_path, "compare", "accuracy", 1)
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


def test_deleting_the_lock_file_lets_nobody_else_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(lock_module, "TRIES", 1)
    with RunLock(tmp_path):
        (tmp_path / "ledger.lock").unlink()
        assert is_locked(tmp_path)
        with pytest.raises(RunLockedError), RunLock(tmp_path):
            pass
    assert not is_locked(tmp_path)


@pytest.mark.parametrize("replaced", [False, True])
def test_a_lock_file_that_was_deleted_before_it_was_locked_locks_nobody(
    replaced: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """As on a system that locks files alone: whoever opened the old file must see that it is not the one in place."""
    monkeypatch.setattr(lock_module, "_open_folder", lambda folder: None)
    monkeypatch.setattr(lock_module, "TRIES", 1)
    path, try_lock = tmp_path / "ledger.lock", lock_module._try_lock
    done: list[int] = []

    def meddling(descriptor: int, shared: bool = False) -> bool:
        if not done:
            done.append(descriptor)
            path.unlink()
            if replaced:
                path.write_text("new")
        return try_lock(descriptor, shared)

    monkeypatch.setattr(lock_module, "_try_lock", meddling)
    with RunLock(tmp_path) as held:
        assert held._file is not None and os.path.samestat(path.stat(), os.fstat(held._file.fileno()))
        with pytest.raises(RunLockedError, match=f"process {os.getpid()}"), RunLock(tmp_path):
            pass


def test_a_lock_that_cannot_say_whose_it_is_is_let_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full() -> str:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("fleetune.lab.lock.socket.gethostname", full)
        with pytest.raises(OSError, match="No space"), RunLock(tmp_path):
            pass
    assert not is_locked(tmp_path)
    with RunLock(tmp_path):
        assert is_locked(tmp_path)


def test_asking_whether_a_run_is_alive_keeps_none_from_starting(tmp_path: Path):
    with RunLock(tmp_path):
        pass
    descriptor = os.open(tmp_path, os.O_RDONLY)
    try:
        assert lock_module._try_lock(descriptor, shared=True)
        assert not is_locked(tmp_path)
    finally:
        os.close(descriptor)


def abandoned(folder: Path) -> Path:
    """Leaves a run whose process was killed: rows that are in the log alone."""
    folder.mkdir()
    child = os.fork()
    if child == 0:
        leave(folder)
    os.waitpid(child, 0)
    assert (folder / "ledger.sqlite-wal").stat().st_size > 0
    return folder


def leave(folder: Path) -> None:
    ledger = Ledger(folder)
    ledger.begin_attempt({})
    ledger.set_meta(metric="accuracy", name="left")
    ledger.add_trials([row("a")])
    ledger.start_trial("a")
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_folder_that_was_copied_or_moved_after_a_kill_goes_on(tmp_path: Path):
    folder = abandoned(tmp_path / "run")
    copy = tmp_path / "copy"
    # The index of the log is made again, whatever a copy brings along.
    shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("*-shm"))
    folder.rename(tmp_path / "moved")
    for place in (copy, tmp_path / "moved"):
        assert read_status(place).trials[0].status == "pending"
        ledger = Ledger(place)
        assert ledger.begin_attempt({}) == 2
        assert ledger.statuses() == {"a": "pending"}
        ledger.close()
        assert not (place / "ledger.sqlite-wal").exists()


@pytest.mark.parametrize("kind", [None, "nfs4"])
@pytest.mark.parametrize("closed", [True, False])
def test_a_run_is_read_where_sqlite_cannot_share_memory(
    kind: str | None, closed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder = abandoned(tmp_path / "run")
    if closed:
        Ledger(folder).close()
    before = {file.name: file.read_bytes() for file in folder.iterdir() if not file.name.endswith("-shm")}
    monkeypatch.setattr(database_module, "network_type", lambda folder: kind)
    read_only = database_module._read_only

    def refused(address: str) -> sqlite3.Connection:
        if address.endswith("mode=ro"):
            error = sqlite3.OperationalError("unable to open database file")
            error.sqlite_errorcode = sqlite3.SQLITE_CANTOPEN
            raise error
        return read_only(address)

    monkeypatch.setattr(database_module, "_read_only", refused)
    assert read_status(folder).name == "left" and read_status(folder).counts["pending"] == 1
    assert {file.name: file.read_bytes() for file in folder.iterdir() if not file.name.endswith("-shm")} == before


READ = """
import fcntl, os, sys
sys.path[:0] = sys.argv[2].split(os.pathsep)
from pathlib import Path
from fleetune.lab.status import read_status
if os.getuid() == 0:
    os.setuid(65534)
status = read_status(Path(sys.argv[1]))
print(status.name, status.counts["pending"], status.alive, os.access(sys.argv[1], os.W_OK))
"""


@pytest.mark.skipif(os.name == "nt", reason="permissions of a folder")
@pytest.mark.parametrize("closed", [True, False])
def test_a_run_is_read_by_who_may_not_write_its_folder(closed: bool):
    import tempfile

    with tempfile.TemporaryDirectory() as shared:
        place = Path(shared)
        folder = abandoned(place / "run")
        if closed:
            Ledger(folder).close()
        for file in folder.iterdir():
            file.chmod(0o444)
        place.chmod(0o755)
        folder.chmod(0o555)
        try:
            read = subprocess.run(
                [sys.executable, "-c", READ, str(folder), os.pathsep.join(sys.path)],
                capture_output=True,
                text=True,
                check=False,
            )
        finally:
            folder.chmod(0o755)
        assert read.stdout.split() == ["left", "1", "False", "False"], read.stderr
