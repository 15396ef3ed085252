"""TensorBoard: one event file a trial and attempt, in the run's folder."""

from __future__ import annotations

import json
import re
import shlex
import struct
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fleetune.lab.trackers.base import Ending, Picture, Point, TrackedRun, TrackedTrial, Tracker, flat

_NOT_IN_NAMES = re.compile(r"[^\w.=+-]+")


def make() -> Tracker:
    """Returns the tracker."""
    return TensorBoard()


@dataclass(frozen=True)
class _Log:
    """A trial's event file, and what it was asked to do."""

    file: Path
    configuration: Mapping[str, Any]


class TensorBoard(Tracker):
    """Writes event files, appending in batches: hundreds of trials at once then hold no files open, and no threads."""

    def __init__(self) -> None:
        self._folder = Path()
        self._logs: dict[str, _Log] = {}

    def open(self, run: TrackedRun) -> str:
        import tensorboard  # noqa: F401  a package that is broken shows before the first trial

        self._folder = run.folder / "tensorboard"
        return f"type tensorboard --logdir {shlex.quote(str(self._folder))}"

    def start(self, trial: TrackedTrial) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog

        name = _NOT_IN_NAMES.sub("-", trial.label).strip("-.")
        folder = self._folder / f"{name}-{trial.id}"
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / f"events.out.tfevents.{time.time_ns() / 1e9:.6f}.fleetune"
        self._logs[trial.id] = _Log(file, trial.configuration)
        now = time.time()
        self._write(trial.id, [Event(wall_time=now, file_version="brain.Event:2")])
        # A second START makes TensorBoard forget the events before it. What an earlier attempt measured is told again
        # from the ledger, so that neither a gap nor a step twice is left.
        self._write(trial.id, [Event(wall_time=now, step=0, session_log=SessionLog(status=SessionLog.START))])
        self._write_summary(trial.id, _text("configuration", _as_markdown(flat(trial.configuration))), 0)

    def log(self, trial: str, points: Sequence[Point]) -> None:
        from tensorboard.compat.proto.event_pb2 import Event

        self._write(trial, [Event(wall_time=one.time, step=one.step, summary=_scalars(one.values)) for one in points])

    def end(self, trial: str, ending: Ending) -> None:
        words = ending.outcome if ending.reason is None else f"{ending.outcome}: {ending.reason}"
        self._write_summary(trial, _text("status", words), ending.step)
        if ending.outcome == "done":
            self._write_summary(trial, _scalars(ending.metrics), ending.step)
            for summary in _hyperparameters(self._logs[trial].configuration, ending.metrics):
                self._write_summary(trial, summary, ending.step)
            for picture in ending.pictures:
                self._write_summary(trial, _image(picture), ending.step)
        del self._logs[trial]

    def close(self) -> None:
        self._logs.clear()

    def _write_summary(self, trial: str, summary: Any, step: int) -> None:
        from tensorboard.compat.proto.event_pb2 import Event

        self._write(trial, [Event(wall_time=time.time(), step=step, summary=summary)])

    def _write(self, trial: str, events: Sequence[Any]) -> None:
        from tensorboard.summary.writer.record_writer import RecordWriter

        with self._logs[trial].file.open("ab") as file:
            writer = RecordWriter(file)
            for event in events:
                writer.write(event.SerializeToString())


def _scalars(values: Mapping[str, float]) -> Any:
    from tensorboard.compat.proto.summary_pb2 import Summary

    return Summary(value=[Summary.Value(tag=name, simple_value=value) for name, value in values.items()])


def _image(picture: Picture) -> Any:
    from tensorboard.compat.proto.summary_pb2 import Summary

    # The header of a PNG file: 8 bytes of signature, 8 of chunk length and name, then width and height.
    width, height = struct.unpack(">II", picture.png[16:24])
    image = Summary.Image(height=height, width=width, colorspace=4, encoded_image_string=picture.png)
    return Summary(value=[Summary.Value(tag=f"figures/{picture.key}", image=image)])


def _text(tag: str, text: str) -> Any:
    from torch.utils.tensorboard.summary import text as text_summary

    return text_summary(tag, text)


def _hyperparameters(configuration: Mapping[str, Any], metrics: Mapping[str, float]) -> tuple[Any, ...]:
    from torch.utils.tensorboard.summary import hparams

    return tuple(hparams(flat(configuration), dict(metrics)))


def _as_markdown(values: Mapping[str, Any]) -> str:
    lines = [f"| {name} | {json.dumps(value, ensure_ascii=False)} |" for name, value in values.items()]
    return "\n".join(["| setting | value |", "| --- | --- |", *lines])
