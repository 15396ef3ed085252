"""Results as text: plain for the terminal, Markdown for `docs/benchmarks.md`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from benchmarks.results import Result, Verdict
from benchmarks.workloads import GIB

Rows = list[list[str]]
NAMED = ("torch", "transformers", "peft", "accelerate", "fleetune")


@dataclass(frozen=True)
class Setting:
    """Where and how the results came about.

    Attributes:
        date: When it began.
        environment: As `runtime.environment` has it.
        precision: Of contender C, and of the matrix products' peak.
        rounds: Turns of each contender.
        share: Share of the texts.
        own_peaks: Whether each contender's peak memory is its own.
        names: What each contender is.
    """

    date: datetime
    environment: dict[str, Any]
    precision: str
    rounds: int
    share: float
    own_peaks: bool
    names: dict[str, str]

    @property
    def machine(self) -> str:
        """The GPU where there is one, and the processor."""
        named = (self.environment["device"], self.environment["processor"])
        return ", ".join(name for name in named if name != "cpu")

    def lines(self) -> list[str]:
        """Returns machine, versions and settings, a line each."""
        machine, packages = self.environment, self.environment["packages"]
        lines = [
            f"{self.machine}, {machine['cores']} cores, {machine['threads']} threads",
            ", ".join(f"{name} {packages[name]}" for name in NAMED if name in packages),
            f"Precision of C and of the peak: {self.precision}. Rounds: {self.rounds}.",
        ]
        if not machine["fast_bf16"]:
            lines.append("No fast bf16 here: B and D run in fp32, and so does C.")
        if self.share != 1.0:
            lines.append(f"A share of {self.share:g} of the texts only: the targets are meant for all of them.")
        if not self.own_peaks:
            lines.append("The system does not reset peaks: memory is the highest of this process so far.")
        return lines


def workload_lines(result: Result) -> list[str]:
    """Returns what the workload was, in two lines."""
    facts = result.facts
    texts = f"{facts.texts:,} training texts ({facts.tokens:,} real tokens) a trial, {facts.evaluated:,} evaluated"
    return [
        f"{facts.name}: {facts.title}",
        f"{texts}; matrix products reach {facts.products_per_second / 1e9:,.0f} GFLOP/s",
    ]


def contender_rows(result: Result, names: dict[str, str]) -> Rows:
    """Returns the table of contenders, its heading first."""
    several = max(len(turns) for turns in result.turns.values()) > 1
    heading = ["", "contender", "seconds", "texts/s", "tokens/s", "utilisation", "memory", "first step", "log loss"]
    rows = [_with_extremes(heading, "min – max", several)]
    for name in result.contenders:
        shortest, longest = result.extremes(name)
        row = [
            name,
            names[name],
            f"{result.seconds(name):.1f}",
            f"{result.texts_per_second(name):.1f}",
            f"{result.tokens_per_second(name):,.0f}",
            f"{result.utilisation(name):.1%}",
            f"{result.peak_bytes(name) / GIB:.2f} GiB",
            f"{result.first_step_seconds(name):.2f} s",
            f"{result.loss(name):.3f}",
        ]
        rows.append(_with_extremes(row, f"{shortest:.1f} – {longest:.1f}", several))
    return rows


def _with_extremes(row: list[str], cell: str, several: bool) -> list[str]:
    return [*row[:3], cell, *row[3:]] if several else row


def verdict_rows(result: Result) -> Rows:
    """Returns the table of measures and targets, its heading first."""
    rows = [[verdict.measure, _value(verdict, verdict.value), _target(verdict)] for verdict in result.verdicts()]
    return [["measure", "value", "target"], *rows]


def _value(verdict: Verdict, value: float | None) -> str:
    if value is None:
        return "not measured"
    return f"{value:.1%}" if verdict.measure.startswith("utilisation") else f"{value:.2f}"


def _target(verdict: Verdict) -> str:
    if verdict.target is None:
        return "–"
    bound = f"{'≤' if verdict.target.at_most else '≥'} {_value(verdict, verdict.target.bound)}"
    return bound if verdict.met is None else f"{bound}: {'met' if verdict.met else 'missed'}"


def plain(setting: Setting, results: Sequence[Result]) -> str:
    """Returns everything for the terminal."""
    lines = [f"Measured {_stamp(setting)}", *setting.lines()]
    for result in results:
        lines += ["", *workload_lines(result), ""]
        lines += _aligned(contender_rows(result, setting.names))
        if len(verdicts := verdict_rows(result)) > 1:
            lines += ["", *_aligned(verdicts)]
    return "\n".join(lines)


def markdown(setting: Setting, results: Sequence[Result]) -> str:
    """Returns a dated section for `docs/benchmarks.md`."""
    lines = [f"### {_stamp(setting)}: {setting.machine}", "", *(f"- {line}" for line in setting.lines())]
    for result in results:
        title, facts = workload_lines(result)
        lines += ["", f"**{title}.** {facts}.", "", *_piped(contender_rows(result, setting.names))]
        if len(verdicts := verdict_rows(result)) > 1:
            lines += ["", *_piped(verdicts)]
    return "\n".join(lines) + "\n"


def _stamp(setting: Setting) -> str:
    return f"{setting.date:%Y-%m-%d %H:%M} UTC"


def _aligned(rows: Rows) -> list[str]:
    """Returns the rows with columns under each other: words to the left, figures to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    words = 2 if rows[0][0] == "" else 1
    return [
        "  "
        + "  ".join(
            cell.ljust(width) if column < words else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _piped(rows: Rows) -> list[str]:
    words = 2 if rows[0][0] == "" else 1
    rule = ["---" if column < words else "--:" for column in range(len(rows[0]))]
    return [f"| {' | '.join(row)} |" for row in [rows[0], rule, *rows[1:]]]
