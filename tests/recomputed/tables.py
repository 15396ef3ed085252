"""The sortable tables of the page, but those of configurations and of tests."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from tests.recomputed import insights
from tests.recomputed.context import Context
from tests.recomputed.inference import Row
from tests.recomputed.page import Cell, Table, table_of
from tests.recomputed.printed import in_words, read
from tests.recomputed.scores import LOWER_IS_BETTER

FITTED = 1e-4
"""Of numbers that hang on a temperature, which two searches find to so many digits."""
SIX_DIGITS = 6e-6
"""Of numbers printed with six digits."""
Records = Sequence[dict[str, Any]]


class Tables(Context):
    """Checks the tables of a page."""

    def check(self) -> None:
        known: dict[str, Callable[[Table], None]] = {
            "tests": lambda table: None,
            "budget-grids": self._budget,
            "calibration-errors": self._calibration,
            "operating-points": self._operating_points,
            "weak-spots": self._weak_spots,
            "slice-scores": self._slice_scores,
            "disagreeing-texts": self._disagreements,
            "looks": self._looks,
        }
        for group in self.page.all("div", "group"):
            key = group.attributes.get("id", "")
            if key and key not in known:
                self.checks.skip(f"table {key}")
            elif key:
                known[key](table_of(group.one("table")))

    def _budget(self, table: Table) -> None:
        entries = self._entries()
        self.checks.equal("page: budgets", len(table.rows), len(entries))
        for line in table.rows:
            keys = {
                title: line[name].text for title, name in (("data", "Data"), ("backbone", "Backbone")) if name in line
            }
            rows = next((rows for (data, backbone, entry), rows in entries.items()
                         if entry == line["Method"].text and keys.get("data", data) == data
                         and keys.get("backbone", backbone) == backbone), [])  # fmt: skip
            where = f"page: budget of {line['Method'].text!r}"
            self._number(f"{where}, settings", line["Settings tried"], len(rows))
            self._number(f"{where}, trials", line["Trials"], sum(len(row.trials) for row in rows))
            numbers = _varying_numbers(rows)
            self.checks.among(f"{where}, values", line["Values"].text, numbers, self._words_in(rows))
            printed = {one.value for text in in_words(line["Values"].text, self._words_in(rows)) if (one := read(text))}
            self.checks.equal(f"{where}, values left out", sorted(set(numbers) - printed), [])
            fitting = [row for row in rows if math.isfinite(row.validation)]
            sign = -1.0 if rows and rows[0].metric in LOWER_IS_BETTER else 1.0
            best = max(fitting, key=lambda row: round(sign * row.validation, 12)) if fitting else None
            self.checks.equal(f"{where}, chosen", line["Chosen on validation"].text, best.name if best else "–")
            settings = [_value(str(row.first.settings.get("learning_rate", ""))) or 0.0 for row in rows]
            self.checks.among(f"{where}, remarks", line["Remarks"].text, [*numbers, *settings], self._words_in(rows))

    def _words_in(self, rows: Sequence[Row]) -> list[str]:
        """Returns values of settings that are words with digits in them."""
        lists = [value for row in rows for value in row.first.settings.values() if isinstance(value, list | str)]
        return [str(word) for value in lists for word in (value if isinstance(value, list) else [value])]

    def _calibration(self, table: Table) -> None:
        expected = sum(any(insights.usable(row)) for name in self.data for row in self._more_rows(name))
        self.checks.equal("page: calibration errors, lines", len(table.rows), expected)
        for line in table.rows:
            row = self.found.row(line["Configuration"].text)
            if row is None:
                self.checks.wrong.append(
                    f"page: calibration errors name {line['Configuration'].text!r}, no configuration"
                )
                continue
            where, found = f"page: calibration of {row.name!r}", insights.calibration(row)
            self._number(f"{where}, error as trained", line["Error as trained"], found.error)
            self._number(f"{where}, error calibrated", line["Error calibrated"], found.calibrated_error, FITTED)
            printed = line["Temperature by seed"].text.split(", ")
            self.checks.equal(f"{where}, temperatures", len(printed), len(found.temperatures))
            for text, value in zip(printed, found.temperatures, strict=False):
                self.checks.printed(f"{where}, temperature", text, value, 0.005)

    def _operating_points(self, table: Table) -> None:
        leads = {name: rows[0] for name in self.data if (rows := self._more_rows(name))}
        for line in table.rows:
            row = leads[line["Data"].text] if "Data" in line else next(iter(leads.values()))
            least = read(line["At least"].text)
            self.checks.equal("page: thresholds are of", line["Configuration"].text, " ".join(row.name.split()))
            where = f"page: threshold for {line['Wished'].text} {line['At least'].text} of {line['Label'].text!r}"
            found = insights.operating_point(
                row, line["Label"].text, line["Wished"].text, least.value if least else 0.0
            )
            titles = {"Seeds that reach it": "reached", "Seeds": "seeds", "Threshold": "threshold",
                      "Precision": "precision", "Recall": "recall"}  # fmt: skip
            for title, key in titles.items():
                self._number(f"{where}, {title}", line[title], found[key], FITTED)
        names = [row.first.label_names for row in leads.values() if not row.is_baseline and row.first.several]
        two = [row for row in leads.values() if not row.is_baseline and len(row.first.label_names) == 2]
        wished = len(insights.WISHES) * (sum(map(len, names)) + sum(not row.first.several for row in two))
        self.checks.equal("page: thresholds for wishes, lines", len(table.rows), min(wished, 200))

    def _slice_scores(self, table: Table) -> None:
        expected: dict[tuple[str, ...], Any] = {}
        for name in self.data:
            rows = self._more_rows(name)
            held = self.stored.texts(name, self.found.split)
            if held is not None and rows and rows[0].texts >= 20:
                expected |= {(rows[0].name, part.column, part.value): (part, gap, weak)
                             for part, gap, weak in insights.slice_scores(rows[0], held)}  # fmt: skip
        self.checks.equal("page: slices", len(table.rows), len(expected))
        for line in table.rows:
            key = line["Configuration"].text, line["Divided by"].text, line["Part"].text
            where = f"page: slice {key[1:]}"
            if key not in expected:
                self.checks.wrong.append(f"{where} is not among the recomputed")
                continue
            part, gap, weak = expected[key]
            self._number(f"{where}, texts", line["Texts"], len(part.texts))
            self._number(f"{where}, score", line["Score"], gap.one)
            self._gap(where, line, gap.difference, gap.interval)
            self.checks.equal(f"{where}, weak", line["Weak"].text, "yes" if weak else "no")

    def _gap(self, where: str, line: dict[str, Cell], difference: float, ends: tuple[float, float] | None) -> None:
        self._number(f"{where}, difference", line["Difference"], difference)
        self._number(f"{where}, from", line["From"], ends and ends[0])
        self._number(f"{where}, to", line["To"], ends and ends[1])

    def _weak_spots(self, table: Table) -> None:
        expected: dict[tuple[str, ...], Any] = {}
        for name in self.data:
            rows = self._more_rows(name)
            if not rows or rows[0].texts < 20:
                continue
            others = [row for row in rows[1:] if not row.is_baseline]
            for part, metric, other, gap, holds in insights.weak_spots(
                rows[0], others, self._same_texts(name, rows[0])
            ):
                expected[other, part.column, part.value] = part, metric, gap, holds
        self.checks.equal("page: weak spots", len(table.rows), min(len(expected), 200))
        for line in table.rows:
            key = line["Better there"].text, line["Divided by"].text, line["Part"].text
            where = f"page: weak spot {key}"
            if key not in expected:
                self.checks.wrong.append(f"{where} is not among the recomputed")
                continue
            part, metric, gap, holds = expected[key]
            sign = -1.0 if metric in LOWER_IS_BETTER else 1.0
            self._number(f"{where}, texts", line["Texts"], len(part.texts))
            self._number(f"{where}, chosen", line["Chosen"], gap.other)
            self._number(f"{where}, other", line["Other"], gap.one)
            low, high = sorted(sign * end for end in gap.interval)
            self._gap(where, line, sign * gap.difference, (low, high))
            self.checks.equal(f"{where}, holds", line["Holds"].text, "yes" if holds else "no")

    def _disagreements(self, table: Table) -> None:
        lines = list(table.rows)
        for name in self.data:
            rows = self._more_rows(name)
            found = insights.divided_texts(rows) if len(rows) > 1 and rows[0].texts >= 20 else []
            held = self._same_texts(name, rows[0]) if rows else None
            own = [line for line in lines if "Data" not in line or line["Data"].text == name]
            self.checks.equal(f"page: texts that divide, on {name}", len(own), len(found))
            for line, (place, right, decisions) in zip(own, found, strict=False):
                where = f"page: dividing text {place}"
                if held is not None:
                    self.checks.equal(where, line["Place"].text, held.places[place])
                self._number(f"{where}, share right", line["Share right"], right)
                for one, labels in decisions.items():
                    self.checks.equal(f"{where}, decision of {one!r}", line[one].text, ", ".join(labels))

    def _looks(self, table: Table) -> None:
        looks = self.stored.looks[: len(table.rows)]
        self.checks.equal("page: looks at the test scores", len(table.rows), len(looks))
        for line, look in zip(table.rows, reversed(looks), strict=False):
            self.checks.equal("page: time of a look", line["Time"].text, look["time"])
            self.checks.equal("page: command of a look", line["Command"].text, look["command"])
            self._number("page: configurations of a look", line["Configurations"], look["configurations"])


def _value(text: str) -> float | None:
    try:
        found = read(text)
    except ValueError:
        return None
    return found.value if found else None


def _varying_numbers(rows: Sequence[Row]) -> list[float]:
    """Returns the distinct numbers of each setting that varies between rows."""
    found: list[float] = []
    for name in dict.fromkeys(name for row in rows for name in row.first.settings):
        values = dict.fromkeys(str(value) for row in rows if (value := row.first.settings.get(name)) is not None)
        if len(values) > 1:
            found += [number for value in values if (number := _value(value)) is not None]
    return found
