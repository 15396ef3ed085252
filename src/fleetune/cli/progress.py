"""Shows a run while it trains: a live table on a terminal, plain lines elsewhere; both on stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fleetune.cli.output import print_note, safe
from fleetune.cli.words import counted, duration, number
from fleetune.engine.events import Evaluated, Failed, Finished, Stepped
from fleetune.lab.notices import FleetOpened, Noted, Notice, RunOpened, Said, Watch
from fleetune.redaction import redacted

if TYPE_CHECKING:
    from rich.table import Table

SECONDS_BETWEEN_LINES = 60.0
SPEED_WINDOW_SECONDS = 60.0
BAR_CELLS = 16
ROWS_SHOWN = 30


@dataclass
class TrialView:
    """What is shown of one trial."""

    label: str
    status: str = "pending"
    step: int = 0
    total_steps: int = 0
    loss: float | None = None
    best: float | None = None
    reason: str = ""
    metric: str = ""


@dataclass
class RunView:
    """What is shown of a run; it takes each notice in."""

    metric: str = ""
    trials: dict[str, TrialView] = field(default_factory=dict)
    fleet: tuple[str, ...] = ()
    message: str = ""
    _recent: list[tuple[float, int]] = field(default_factory=list)
    _fleet_started: float = 0.0
    _fleet_steps: int = 0

    def take(self, notice: Notice) -> None:
        """Updates the view."""
        match notice:
            case Said():
                self.message = notice.text
            case RunOpened():
                self._open(notice)
            case FleetOpened():
                self.fleet, self._fleet_started, self._fleet_steps = notice.trials, time.monotonic(), 0
                self._recent.clear()
                where = f"on {notice.backbone}, {notice.facts.layout}" if notice.facts.layout else "without a model"
                self.message = f"fleet {notice.number + 1} of {notice.fleets} {where}"
                for trial in notice.trials:
                    self.trials[trial].status = "running"
            case Stepped():
                view = self.trials[notice.trial]
                view.step, view.total_steps, view.loss = notice.step, notice.total_steps, notice.loss
                self._fleet_steps += 1
                self._recent.append((time.monotonic(), notice.tokens))
            case Evaluated():
                if notice.best:
                    view = self.trials[notice.trial]
                    view.best = notice.metrics.get(view.metric)
            case Finished():
                view = self.trials[notice.trial]
                view.status, view.step = "done", notice.steps
                view.total_steps = max(view.total_steps, notice.steps)
            case Failed():
                self.trials[notice.trial].status = "failed"
                self.trials[notice.trial].reason = notice.reason

    @property
    def tokens_per_second(self) -> float | None:
        """Training tokens a second, over the last few seconds."""
        now = time.monotonic()
        self._recent = [(moment, tokens) for moment, tokens in self._recent if now - moment < SPEED_WINDOW_SECONDS]
        if len(self._recent) < 2:
            return None
        return sum(tokens for _, tokens in self._recent) / max(1e-9, now - self._recent[0][0])

    @property
    def seconds_left(self) -> float | None:
        """Time the current fleet still takes, by its steps so far."""
        running = [self.trials[trial] for trial in self.fleet if self.trials[trial].status == "running"]
        left = sum(max(0, view.total_steps - view.step) for view in running)
        if not self._fleet_steps or not left:
            return None
        return (time.monotonic() - self._fleet_started) / self._fleet_steps * left

    def summary(self) -> str:
        """Returns the line below the table."""
        words = [safe(self.message)]
        if (speed := self.tokens_per_second) is not None:
            words.append(f"{speed:,.0f} tokens/s")
        if (left := self.seconds_left) is not None:
            words.append(f"about {duration(left)} left in this fleet")
        return " · ".join(word for word in words if word)

    def _open(self, notice: RunOpened) -> None:
        self.metric = notice.metric
        several = len({(trial.data.name, trial.backbone.name) for trial in notice.plan.trials}) > 1
        for trial in notice.plan.trials:
            where = f" · {trial.data.name} · {trial.backbone.name}" if several else ""
            status = notice.statuses.get(trial.id, "pending")
            self.trials[trial.id] = TrialView(trial.label + where, status, metric=trial.training.metric)
        if len({trial.training.metric for trial in notice.plan.trials}) > 1:
            self.metric = "score"


@contextmanager
def watching(quiet: bool = False) -> Iterator[Watch]:
    """Yields what to call with each notice, and shows it until left."""
    if quiet:
        yield _unseen
    elif sys.stderr.isatty():
        with _live() as watch:
            yield watch
    else:
        yield PlainLines().take


def _unseen(notice: Notice) -> None:
    """Does nothing."""


class PlainLines:
    """A line for each evaluation, and one a minute where evaluations are rare."""

    def __init__(self) -> None:
        self.view = RunView()
        self._last_line = time.monotonic()

    def take(self, notice: Notice) -> None:
        """Prints what is worth a line."""
        self.view.take(notice)
        match notice:
            case Said() | Noted():
                self._print(notice.text)
            case RunOpened():
                done = sum(status == "done" for status in notice.statuses.values())
                skipped = f", {done} done before" if done else ""
                trials, fleets = len(notice.plan.trials), len(notice.plan.fleets)
                self._print(f"{counted(trials, 'trial')} in {counted(fleets, 'fleet')}{skipped}")
            case FleetOpened():
                precision = f" ({notice.facts.precision})" if notice.facts.precision else ""
                self._print(f"{self.view.message}{precision}: {counted(len(notice.trials), 'trial')}")
            case Evaluated():
                metric = self.view.trials[notice.trial].metric
                best = " (best)" if notice.best else ""
                self._print(f"{self._trial(notice.trial)}: {metric} {number(notice.metrics.get(metric))}{best}")
            case Finished():
                best = f", best at step {notice.best_step}" if notice.steps else ""
                early = ", stopped early" if notice.stopped_early else ""
                self._print(f"{self._trial(notice.trial)}: done in {duration(notice.seconds)}{best}{early}")
            case Failed():
                self._print(f"{self.view.trials[notice.trial].label}: failed: {notice.reason}")
            case Stepped():
                if time.monotonic() - self._last_line > SECONDS_BETWEEN_LINES:
                    self._print(f"{self._trial(notice.trial)}: loss {number(notice.loss)} · {self.view.summary()}")

    def _trial(self, trial: str) -> str:
        view = self.view.trials[trial]
        steps = f" step {view.step}/{view.total_steps}" if view.total_steps else ""
        return f"{view.label}{steps}"

    def _print(self, line: str) -> None:
        self._last_line = time.monotonic()
        print_note(line)


@contextmanager
def _live() -> Iterator[Watch]:
    from rich.console import Console, Group
    from rich.live import Live
    from rich.text import Text

    view = RunView()

    def drawn() -> Any:
        return Group(_table(view), Text(view.summary(), style="dim"))

    with Live(get_renderable=drawn, console=Console(stderr=True), refresh_per_second=4) as live:

        def take(notice: Notice) -> None:
            if isinstance(notice, Noted):
                live.console.print(Text(safe(redacted(notice.text))))
            view.take(notice)

        yield take


def _table(view: RunView) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("trial", "progress", "step", "loss", f"best {view.metric}"):
        table.add_column(name, justify="left" if name in ("trial", "progress") else "right", no_wrap=name != "trial")
    shown = _most_telling(list(view.trials.values()))
    for trial in shown:
        style = {"done": "green", "failed": "red", "running": ""}.get(trial.status, "dim")
        steps = f"{trial.step}/{trial.total_steps}" if trial.total_steps else ""
        cells = [safe(trial.label), _bar(trial), steps, _short(trial.loss), _short(trial.best)]
        table.add_row(*(Text(cell, style=style) for cell in cells))
    hidden = len(view.trials) - len(shown)
    if hidden:
        table.add_row(f"and {hidden} more", "", "", "", "")
    return table


def _most_telling(trials: list[TrialView]) -> list[TrialView]:
    """Returns the trials that fit a screen: those that train first, in the order of the recipe."""
    rank = {"running": 0, "failed": 1, "pending": 2, "done": 3}
    chosen = sorted(range(len(trials)), key=lambda place: (rank.get(trials[place].status, 2), place))[:ROWS_SHOWN]
    return [trials[place] for place in sorted(chosen)]


def _bar(trial: TrialView) -> str:
    if trial.status != "running":
        return trial.status
    filled = round(BAR_CELLS * trial.step / trial.total_steps) if trial.total_steps else 0
    return "█" * filled + "░" * (BAR_CELLS - filled)


def _short(value: float | None) -> str:
    return "" if value is None else number(value)
