"""The table of configurations, and the table of tests between them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from fleetune import methods
from fleetune.compare.configuration import all_settings
from fleetune.compare.pair import PairTest
from fleetune.compare.row import Row
from fleetune.methods import is_floor
from fleetune.report import words
from fleetune.report.table import Cell, Heading, TableView

MAX_TESTS = 200


@dataclass(frozen=True)
class Line:
    """One configuration in the overview."""

    name: str
    settings: str
    marks: list[tuple[str, str]]
    cells: list[Cell]
    problems: list[str]


@dataclass(frozen=True)
class Overview:
    """The configurations on one data set, best first.

    Attributes:
        columns: Headings of the lines' cells, that of the metric first.
        lines: One a configuration.
        lower_is_better: Whether the best line has the lowest score.
    """

    columns: list[str]
    lines: list[Line]
    lower_is_better: bool = False


@dataclass(frozen=True)
class Cost:
    """A column of costs: its heading, a row's value, how that is written, and a smaller second line."""

    title: str
    value: Callable[[Row], float | None]
    write: Callable[[float | None], str]
    detail: Callable[[Row], str] = lambda row: ""
    is_always_shown: bool = False


def overview(rows: Sequence[Row], recommended: str | None, lower_is_better: bool = False) -> Overview:
    """Returns the table of rows on the same data; costs that no row knows have no column."""
    costs = [
        cost for cost in COSTS if cost.is_always_shown or any(_finite(cost.value(row)) is not None for row in rows)
    ]
    title = words.capitalised(words.metric_title(rows[0].metric))
    return Overview(
        columns=[title, "Validation", "Seeds", *(cost.title for cost in costs)],
        lines=[_line(row, recommended, costs) for row in rows],
        lower_is_better=lower_is_better,
    )


def pairs_table(tests: Sequence[PairTest], key: str = "tests") -> TableView | None:
    """Returns the table of tests between pairs; None where none was asked."""
    if not tests:
        return None
    several = len({test.data for test in tests}) > 1
    headings = [Heading("Configuration", "text"), Heading("Against", "text")]
    headings += [Heading("Data", "text")] if several else []
    headings += [Heading(title, "number") for title in TEST_COLUMNS]
    return TableView(
        key=key,
        title="Tests of pairs",
        caption="Difference: mean of the first less mean of the second on the same texts, over the seeds both have, "
        "with its 95 % interval over seeds and texts. p over seeds: sign-flip test. p over texts: McNemar's test of "
        "right answers, whatever the metric, of these trained classifiers alone. p adjusted: the larger of the test "
        "over seeds and the one behind the interval, after Holm's correction over every pair of the run, since the "
        "seeds that validation chose by are those that are tested. With n seeds p is never below 2 / 2^n, so that an "
        "interval may exclude 0 before anything is demonstrated, which it is below 0.05. Seeds needed: the fewest "
        "with which a pair could be.",
        columns=headings,
        rows=[_test_cells(test, several) for test in tests[:MAX_TESTS]],
        total=len(tests),
    )


TEST_COLUMNS = ("Difference", "95 % interval", "Seeds", "p over seeds", "p over texts", "p adjusted", "Seeds needed")


def _test_cells(test: PairTest, with_data: bool) -> list[Cell]:
    names = [Cell(test.a, test.a), Cell(test.b, test.b)] + ([Cell(test.data, test.data)] if with_data else [])
    return [
        *names,
        Cell(words.signed(test.difference), _finite(test.difference), "demonstrated" if test.is_significant else ""),
        Cell(words.between(test.interval, words.signed), test.interval[0] if test.interval else None),
        Cell(str(test.seeds), test.seeds),
        *(Cell(words.probability(p), _finite(p)) for p in (test.p_seeds, test.p_texts, test.p_adjusted)),
        Cell(words.integer(test.seeds_needed), test.seeds_needed),
    ]


def _line(row: Row, recommended: str | None, costs: Sequence[Cost]) -> Line:
    total = len(row.configuration.trials)
    seeds = str(len(row.scores)) if len(row.scores) == total else f"{len(row.scores)} of {total}"
    spread = f"± {words.score(row.spread)}" if row.spread is not None else ""
    return Line(
        name=row.name,
        settings=_settings(row),
        marks=_marks(row, recommended),
        cells=[
            Cell(words.score(row.mean), _finite(row.mean), _interval(row)),
            Cell(words.score(row.validation), _finite(row.validation)),
            Cell(seeds, len(row.scores), spread),
            *(Cell(cost.write(cost.value(row)), _finite(cost.value(row)), cost.detail(row)) for cost in costs),
        ],
        problems=_problems(row),
    )


def _split_parameters(row: Row) -> str:
    parameters = row.configuration.first.parameters
    if not parameters.get("trainable"):
        return ""
    return f"{words.integer(parameters.get('adapter'))} + {words.integer(parameters.get('head'))}"


def _mean(attribute: str) -> Callable[[Row], float | None]:
    """Returns what takes the mean of a trial's attribute over a row's finished seeds."""

    def mean(row: Row) -> float | None:
        values = [getattr(trial, attribute) for trial in row.configuration.done]
        known = [float(value) for value in values if value is not None]
        return statistics.fmean(known) if known else None

    return mean


COSTS = (
    Cost("Trained", lambda row: row.trainable, words.integer, _split_parameters, True),
    Cost("Weights", lambda row: row.bundle_bytes, words.size, is_always_shown=True),
    Cost("Time", lambda row: row.seconds, words.duration, is_always_shown=True),
    Cost("Peak memory", lambda row: row.peak_bytes, words.size, is_always_shown=True),
    Cost("Operations", _mean("operations"), words.operations),
    Cost("Texts/s in training", _mean("texts_per_second"), words.integer),
    Cost("Texts/s in evaluation", _mean("evaluation_texts_per_second"), words.integer),
    Cost("Operations per text served", _mean("serving_operations"), words.operations),
)


def _settings(row: Row) -> str:
    """Returns the settings that not all configurations share, less the method's own defaults and those in the name."""
    varying = row.configuration.varying or all_settings(row.configuration.first)
    own = {name: field.default for name, field in methods.get(row.configuration.first.kind).Config.model_fields.items()}
    shown = {
        name: value
        for name, value in varying.items()
        if value is not None and f"{name} " not in row.name and not (name in own and _is_same(own[name], value))
    }
    return " · ".join(f"{name} {words.setting(value)}" for name, value in shown.items())


def _is_same(default: Any, value: Any) -> bool:
    """Returns whether a setting is its default; the ledger has lists where methods have tuples."""
    return bool((list(default) if isinstance(default, tuple) else default) == value)


def _marks(row: Row, recommended: str | None) -> list[tuple[str, str]]:
    marks = []
    if row.is_baseline:
        marks.append(("baseline", "floor" if is_floor(row.configuration.first.kind) else "baseline"))
    if row.name == recommended:
        marks.append(("recommended", "recommended"))
    if row.tied_with_best and row.has_known_spread and not row.degenerate:
        marks.append(("tied", "tied with the best"))
    if row.standing == "ahead":
        marks.append(("tied", "better, but not chosen"))
    if row.degenerate:
        marks.append(("degenerate", "degenerate"))
    if row.configuration.failed:
        marks.append(("failed", f"{len(row.configuration.failed)} failed"))
    return marks


def _problems(row: Row) -> list[str]:
    problems = [f"Seed {seed}: {reason}." for seed, reason in row.degenerate.items()]
    for trial in row.configuration.trials:
        if trial.status == "failed":
            problems.append(f"Seed {trial.seed} failed: {trial.reason or 'no reason was recorded'}.")
        elif trial.status != "done":
            problems.append(f"Seed {trial.seed} is {trial.status}.")
    return problems


def _interval(row: Row) -> str:
    """Returns the interval in words; of one trained seed it is about the texts alone, and says so."""
    if row.interval is None:
        return ""
    alone = " (texts alone)" if row.interval_over == "texts" and not row.is_baseline else ""
    return words.between(row.interval) + alone


def _finite(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)
