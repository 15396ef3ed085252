"""Real trackers, offline: what they are told is read back from what they wrote."""

from __future__ import annotations

import json
import os
import signal
import struct
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from fleetune.compare.result import TrialResult
from fleetune.lab.notices import Noted, Notice
from fleetune.lab.recipe import load_recipe
from fleetune.lab.results import load_results
from fleetune.lab.runner import run
from fleetune.lab.signals import RunInterrupted
from fleetune.lab.trackers import feed, wandb
from tests.unit.test_runner import STEPS, FakeExecutor

SECRET = "0123456789abcdef" * 3


class FromStepThree(FakeExecutor):
    """Goes on where a fleet was stopped after its second step."""

    def _events(self, job):
        yield from (event for event in super()._events(job) if getattr(event, "step", STEPS) > 2)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(feed, "SECONDS_BETWEEN_BATCHES", 0.02)
    for name in ("WANDB_MODE", "WANDB_PROJECT", "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
    for name in ("HOME", "NETRC", "WANDB_CONFIG_DIR", "WANDB_CACHE_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    return tmp_path / "runs" / "a 100% quick run"


@pytest.fixture
def track(write_recipe: Callable[..., Path], folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Returns what trains a tiny run with a tracker and gives the lines that users see."""
    # A tracker that is slow to start on a busy machine would else be left behind, and meet the next test.
    monkeypatch.setattr(feed, "SECONDS_WHEN_INTERRUPTED", 60.0)

    def train(tracker: str, executor: FakeExecutor) -> list[str]:
        notices: list[Notice] = []
        recipe = load_recipe(write_recipe(), [f"track={tracker}"])
        run(recipe, folder, notices.append, executor, draw=_drawn)
        return [one.text for one in notices if isinstance(one, Noted) and one.text.startswith(tracker)]

    return train


def _drawn(trial: TrialResult) -> list[Any]:
    from fleetune.lab.trackers.base import Picture

    return [Picture("loss", "Loss", _png(3, 2))]


def _png(width: int, height: int) -> bytes:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + bytes(3 * width) for _ in range(height)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def _interrupt() -> FakeExecutor:
    return FakeExecutor({"head": lambda: os.kill(os.getpid(), signal.SIGTERM)})


def _accuracies(trial: TrialResult) -> list[tuple[int, Any]]:
    return [(one["step"], pytest.approx(one["metrics"]["accuracy"])) for one in trial.history]


def _losses(trial: TrialResult) -> list[tuple[int, Any]]:
    return [(step, pytest.approx(loss)) for step, loss in trial.losses]


def test_tensorboard_shows_each_trial_once_however_often_it_was_taken_up(track, folder):
    from tensorboard.backend.event_processing import event_accumulator, plugin_event_accumulator
    from tensorboard.util.tensor_util import make_ndarray

    with pytest.raises(RunInterrupted):
        track("tensorboard", _interrupt())
    track("tensorboard", FromStepThree())
    trials = load_results(folder).trials
    assert len(list((folder / "tensorboard").iterdir())) == len(trials)
    for trial in trials:
        (place,) = (folder / "tensorboard").glob(f"*{trial.id}")
        assert place.name == f"{trial.method}-seed-{trial.seed}-{trial.id}"
        assert len(list(place.iterdir())) == 2
        read = event_accumulator.EventAccumulator(str(place)).Reload()
        assert [(one.step, one.value) for one in read.Scalars("train/loss")] == _losses(trial)
        # This is what TensorBoard itself reads with; it takes other events for a restart than the one above.
        shown = plugin_event_accumulator.EventAccumulator(str(place), size_guidance={"tensors": 0}).Reload()
        table = {
            tag: [(one.step, make_ndarray(one.tensor_proto).tolist()) for one in shown.Tensors(tag)]
            for tag in shown.Tags()["tensors"]
        }
        assert table["train/loss"] == _losses(trial)
        assert table["validation/accuracy"] == _accuracies(trial)
        assert {"train/learning_rate", "train/gradient_norm", "final/test/accuracy"} <= set(table)
        labels, logits = trial.predictions["validation"]
        right = (logits.argmax(axis=1) == labels).mean()
        assert table["final/validation/accuracy"] == [(STEPS, pytest.approx(right))]
        assert table["figures/loss"] == [(STEPS, [b"3", b"2", _png(3, 2)])]
        ((_, (configuration,)),) = table["configuration/text_summary"]
        assert f"| seed | {trial.seed} |" in configuration.decode()
        assert table["status/text_summary"] == [(STEPS, [b"done"])]
        assert "_hparams_/session_start_info" in shown.Tags()["tensors"]


def test_mlflow_has_one_run_a_trial_in_the_experiment_of_the_run(track, folder):
    from mlflow import MlflowClient

    track("mlflow", FakeExecutor({"lora": "nan"}))
    client = MlflowClient(tracking_uri=f"sqlite:///{folder}/mlflow.db")
    experiment = client.get_experiment_by_name(folder.name)
    assert experiment is not None
    by_trial = {one.data.tags["fleetune.trial"]: one for one in client.search_runs([experiment.experiment_id])}
    trials = load_results(folder).trials
    assert set(by_trial) == {trial.id for trial in trials}
    for trial in trials:
        one = by_trial[trial.id]
        assert one.info.run_name == f"{trial.method} seed {trial.seed}"
        assert one.info.status == ("FINISHED" if trial.status == "done" else "FAILED")
        assert one.data.tags.get("fleetune.reason") == trial.reason
        assert one.data.params["training.learning_rate"] == "0.01" and one.data.params["seed"] == str(trial.seed)
        assert one.data.params["parameters.trainable"] == str(trial.parameters["trainable"])

    track("mlflow", FakeExecutor())
    again = {one.data.tags["fleetune.trial"]: one for one in client.search_runs([experiment.experiment_id])}
    assert {trial: one.info.run_id for trial, one in again.items()} == {
        trial: one.info.run_id for trial, one in by_trial.items()
    }
    for trial in load_results(folder).trials:
        one = again[trial.id]
        assert one.info.status == "FINISHED" and one.data.tags["fleetune.status"] == "done"
        history = {
            name: [(point.step, point.value) for point in client.get_metric_history(one.info.run_id, name)]
            for name in ("train/loss", "validation/accuracy")
        }
        assert history == {"train/loss": _losses(trial), "validation/accuracy": _accuracies(trial)}
        labels, logits = trial.predictions["test"]
        assert one.data.metrics["final/test/accuracy"] == pytest.approx((logits.argmax(axis=1) == labels).mean())
        (figure,) = client.list_artifacts(one.info.run_id, "figures")
        assert figure.path == "figures/loss.png"
        assert one.info.artifact_uri.startswith((folder / "mlartifacts").as_uri())


def wandb_records(path: Path) -> Iterator[Any]:
    """Yields W&B's records: protocol buffers in the format of LevelDB's log, after a header of seven bytes."""
    from wandb.proto import wandb_internal_pb2

    make_record: Any = wandb_internal_pb2.Record  # type: ignore[attr-defined]
    data, place, parts = path.read_bytes(), 7, b""
    assert data[:4] == b":W&B"
    while place + 7 <= len(data):
        left_in_block = 32768 - place % 32768
        if left_in_block < 7:
            place += left_in_block
            continue
        _, length, kind = struct.unpack("<IHB", data[place : place + 7])
        parts += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            record = make_record()
            record.ParseFromString(parts)
            yield record
            parts = b""


def wandb_run(path: Path) -> dict[str, Any]:
    """Returns what W&B has of a run: history by metric, summary, configuration, and the rest of its first record."""
    found: dict[str, Any] = {"history": defaultdict(list), "summary": {}, "config": {}}
    for record in wandb_records(path):
        match record.WhichOneof("record_type"):
            case "run":
                found["run"] = record.run
                found["config"] |= {one.key: json.loads(one.value_json) for one in record.run.config.update}
            case "history":
                for item in record.history.item:
                    name = item.key or "/".join(item.nested_key)
                    found["history"][name].append((record.history.step.num, json.loads(item.value_json)))
            case "summary":
                for item in record.summary.update:
                    found["summary"][item.key or "/".join(item.nested_key)] = json.loads(item.value_json)
            case "exit":
                found["exit"] = record.exit.exit_code
    return found


def services() -> list[str]:
    return [one.name() for one in psutil.Process().children(recursive=True) if "wandb" in one.name()]


def test_wandb_offline_has_one_run_a_trial_in_the_group_of_the_run(track, folder, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_API_KEY", SECRET)
    with pytest.raises(RunInterrupted):
        track("wandb", _interrupt())
    assert services() == []
    first = {path.stem: path for path in folder.glob("wandb/offline-run-*/*.wandb")}
    assert {wandb_run(path)["exit"] for path in first.values()} == {255}
    for path in first.values():
        path.rename(path.with_suffix(".first"))
    (line,) = track("wandb", FromStepThree())
    assert "wandb sync" in line and services() == []
    trials = load_results(folder).trials
    second = {path.stem: path for path in folder.glob("wandb/offline-run-*/*.wandb")}
    assert set(second) == set(first) and len(second) == len(trials), "a trial keeps its id"
    for trial in trials:
        (path,) = (path for name, path in second.items() if name.startswith(f"run-{trial.id}"))
        found = wandb_run(path)
        assert (found["run"].run_group, found["run"].project) == (folder.name, "fleetune")
        assert found["run"].display_name == f"{trial.method} seed {trial.seed}"
        assert found["config"]["training"]["learning_rate"] == 1e-2 and found["config"]["seed"] == trial.seed
        assert found["config"]["parameters"] == trial.parameters
        assert found["history"]["train/loss"] == _losses(trial)
        assert found["history"]["validation/accuracy"] == _accuracies(trial)
        labels, logits = trial.predictions["test"]
        right = (logits.argmax(axis=1) == labels).mean()
        assert found["summary"]["final/test/accuracy"] == pytest.approx(right)
        assert (found["summary"]["status"], found["exit"]) == ("done", 0)
        (figure,) = (path.parent / "files" / "media").rglob("*.png")
        assert figure.read_bytes() == _png(3, 2)
    held = [path for path in folder.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()]
    assert held == []


@pytest.mark.parametrize(
    ("key", "expected"),
    [(None, "no login was found"), (SECRET, "127.0.0.1:9"), ("short", "WANDB_API_KEY invalid")],
    ids=["no login", "no network", "not a key"],
)
def test_wandb_without_login_or_network_asks_nobody_and_stays_offline(track, folder, monkeypatch, key, expected):
    monkeypatch.setattr(wandb, "SECONDS_TO_CONNECT", 1.0)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked"))
    if key is None:
        monkeypatch.delenv("WANDB_API_KEY", raising=False)
    else:
        monkeypatch.setenv("WANDB_API_KEY", key)
    lines = track("wandb", FakeExecutor({"lora": "nan"}))
    assert any(expected in line and "wandb sync" in line for line in lines)
    assert services() == []
    found = {trial.id: trial for trial in load_results(folder).trials}
    for path in folder.glob("wandb/offline-run-*/*.wandb"):
        trial = found.pop(path.stem.split("-")[1])
        record = wandb_run(path)
        assert record["exit"] == (0 if trial.status == "done" else 1)
        assert record["summary"].get("reason") == trial.reason
        assert record["history"]["train/loss"] == _losses(trial)
    assert found == {}
