"""Brings what happens in a run to its trackers, and keeps them from harming it.

Each tracker has a thread and a queue of its own: a slow or dead server stops neither training nor another tracker.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from fleetune.engine.events import Evaluated, Failed, Finished, Stepped
from fleetune.lab.executors.base import BackboneFacts
from fleetune.lab.notices import FleetOpened, Noted, Notice, RunOpened, Said, Watch
from fleetune.lab.plan import Trial
from fleetune.lab.trackers.base import Draw, Ending, Point, TrackedRun, TrackedTrial, Tracker, make_tracker
from fleetune.lab.trackers.facts import Endings, parameter_counts, tracked_run, tracked_trial
from fleetune.lab.trackers.names import require_packages
from fleetune.lab.trackers.points import Points, recorded_events
from fleetune.redaction import redacted

SECONDS_BETWEEN_BATCHES = 2.0
SECONDS_TO_OPEN = 30.0
SECONDS_WITHOUT_PROGRESS = 60.0
SECONDS_WHEN_INTERRUPTED = 5.0
SECONDS_UNTIL_SAID = 3.0
LINE_CHARACTERS = 200


@dataclass(frozen=True)
class _Start:
    trial: TrackedTrial


@dataclass(frozen=True)
class _End:
    """How a trial ended; None where that must be looked up, because it was finished."""

    trial: str
    ending: Ending | None


_Message = _Start | Point | _End | None


class Tracking:
    """Watches a run for its trackers, and passes every notice on to `watch`.

    While it is entered, call what entering gives with each notice. Leaving waits for the trackers, but not for ever.

    Args:
        names: The trackers.
        watch: Is told what happens, and in one line when a tracker fails.
        draw: Draws finished trials; without it there are no figures.

    Raises:
        MissingExtraError: If the package of a tracker is not installed.
    """

    def __init__(self, names: Sequence[str], watch: Watch, draw: Draw | None = None) -> None:
        require_packages(names)
        self._names, self._watch, self._draw = names, watch, draw
        self._couriers: list[_Courier] = []
        self._lines: deque[str] = deque()
        self._plan: dict[str, Trial] = {}
        self._parameters: dict[str, dict[str, int]] = {}
        self._open: set[str] = set()
        self._folder = Path()
        self._points = Points(0)
        self._is_broken = False

    def __enter__(self) -> Watch:
        return self if self._names else self._watch

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for trial in sorted(self._open):
            self._end(trial, Ending("interrupted", None, self._points.last_step(trial)))
        for courier in self._couriers:
            courier.finish()
        self._wait(is_interrupted=error is not None)
        for courier in self._couriers:
            if courier.give_up():
                self._lines.append(f"{courier.name} did not take everything in time; the ledger has it")
        self._say()

    def _wait(self, is_interrupted: bool) -> None:
        """Waits while trackers take what is left; after an interruption not longer than a scheduler waits, either."""
        began = moved = time.monotonic()
        delivered, is_said = -1, False
        while late := [courier for courier in self._couriers if courier.is_alive()]:
            late[0].join(0.1)
            now, total = time.monotonic(), sum(courier.delivered for courier in late)
            if total != delivered:
                delivered, moved = total, now
            if now - began > SECONDS_UNTIL_SAID and not is_said:
                is_said = True
                self._watch(Said(f"waiting for {_listed(late)}"))
            self._say()
            if now - moved > SECONDS_WITHOUT_PROGRESS or (is_interrupted and now - began > SECONDS_WHEN_INTERRUPTED):
                return

    def __call__(self, notice: Notice) -> None:
        """Tells `watch` and the trackers."""
        self._watch(notice)
        if not self._is_broken:
            try:
                self._take(notice)
            except Exception as error:  # noqa: BLE001  training goes on whatever happens here
                self._is_broken = True
                self._lines.append(f"tracking ends here, training goes on: {_line(error)}")
        self._say()

    def _take(self, notice: Notice) -> None:
        match notice:
            case RunOpened():
                self._begin(notice)
            case FleetOpened():
                for trial in notice.trials:
                    self._start(trial, notice.facts)
            case Stepped() | Evaluated():
                self._send(self._points.of(notice))
            case Finished():
                self._send(self._points.rest(notice.trial))
                self._end(notice.trial, None)
            case Failed():
                self._start(notice.trial, None)
                self._send(self._points.rest(notice.trial))
                step = self._points.last_step(notice.trial)
                self._end(notice.trial, Ending("failed", redacted(notice.reason), step))

    def _begin(self, notice: RunOpened) -> None:
        self._folder = notice.folder
        self._plan = {trial.id: trial for trial in notice.plan.trials}
        self._points = Points(len(self._plan))
        if all(notice.statuses.get(trial) == "done" for trial in self._plan):
            return
        self._parameters = parameter_counts(notice.folder)
        run, endings = tracked_run(notice.folder), Endings(notice.folder, self._draw, self._lines)
        self._couriers = [_Courier(name, run, endings, self._lines) for name in self._names]
        for courier in self._couriers:
            courier.start()
        # Importing these packages takes seconds of a processor: they would count as training time of the first trials.
        deadline = time.monotonic() + SECONDS_TO_OPEN
        for courier in self._couriers:
            courier.opened.wait(max(0.0, deadline - time.monotonic()))

    def _start(self, trial: str, facts: BackboneFacts | None) -> None:
        """Begins a trial, with what an earlier attempt measured; one that goes on in a smaller fleet began before."""
        if trial in self._open:
            return
        self._open.add(trial)
        self._send(_Start(tracked_trial(self._plan[trial], self._parameters[trial], facts)))
        for event in recorded_events(self._folder, trial):
            self._send(self._points.of(event))

    def _end(self, trial: str, ending: Ending | None) -> None:
        self._open.discard(trial)
        self._send(_End(trial, ending))

    def _send(self, message: _Message) -> None:
        if message is not None:
            for courier in self._couriers:
                courier.put(message)

    def _say(self) -> None:
        while self._lines:
            self._watch(Noted(self._lines.popleft()))


class _Courier(threading.Thread):
    """Brings messages to one tracker, many at once. After a failure it says so once, and takes them to nobody.

    Attributes:
        opened: Is set when the tracker is ready, or never will be.
        delivered: Number of messages that are there, for whoever waits.
    """

    def __init__(self, name: str, run: TrackedRun, endings: Endings, lines: deque[str]) -> None:
        super().__init__(name=name, daemon=True)
        self.opened, self.delivered = threading.Event(), 0
        self._run_facts, self._endings, self._lines = run, endings, lines
        self._queue: queue.SimpleQueue[_Message] = queue.SimpleQueue()
        self._closing, self._given_up, self._is_dead = threading.Event(), threading.Event(), False

    def put(self, message: _Message) -> None:
        """Adds a message; returns at once."""
        if not self._is_dead:
            self._queue.put(message)

    def finish(self) -> None:
        """Lets the thread end when everything is delivered."""
        self._queue.put(None)
        self._closing.set()

    def give_up(self) -> bool:
        """Stops delivering, and returns whether something was left."""
        self._given_up.set()
        return self.is_alive()

    def run(self) -> None:
        """Delivers until the end, or until something goes wrong."""
        tracker: Tracker | None = None
        try:
            tracker = make_tracker(self.name)
            self._say(tracker.open(self._run_facts))
            self.opened.set()
            while not self._given_up.is_set():
                batch = self._gathered()
                self._deliver(tracker, batch)
                if batch[-1] is None:
                    break
                self._closing.wait(SECONDS_BETWEEN_BATCHES)
        except BaseException as error:  # noqa: BLE001  W&B may even raise SystemExit
            self._is_dead = True
            if not self._given_up.is_set():
                self._say(f"no more goes there, training goes on: {_line(error)}")
        finally:
            self.opened.set()
            if tracker is not None:
                with suppress(BaseException):
                    tracker.close()

    def _gathered(self) -> list[_Message]:
        """Returns the messages that wait, or the next one if none does."""
        batch = [self._queue.get()]
        with suppress(queue.Empty):
            while batch[-1] is not None:
                batch.append(self._queue.get_nowait())
        return batch

    def _deliver(self, tracker: Tracker, batch: list[_Message]) -> None:
        points: dict[str, list[Point]] = {}
        for message in batch:
            if self._given_up.is_set():
                return
            match message:
                case Point():
                    points.setdefault(message.trial, []).append(message)
                case _Start():
                    line = tracker.start(message.trial)
                    if line:
                        self._say(line)
                case _End():
                    tracker.log(message.trial, points.pop(message.trial, []))
                    tracker.end(message.trial, message.ending or self._endings.of(message.trial))
            self.delivered += 1
        for trial, several in points.items():
            tracker.log(trial, several)

    def _say(self, line: str) -> None:
        self._lines.append(f"{self.name}: {redacted(line)}")


def _line(error: BaseException) -> str:
    """Returns an error in one line that holds no secret."""
    text = " ".join(redacted(f"{type(error).__name__}: {error}").split())
    return text if len(text) <= LINE_CHARACTERS else text[: LINE_CHARACTERS - 1] + "…"


def _listed(couriers: Sequence[_Courier]) -> str:
    return " and ".join(courier.name for courier in couriers)
