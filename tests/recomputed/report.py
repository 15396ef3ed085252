"""`index.html` against what follows from a run's predictions and its ledger: each table, figure and sentence."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from tests.recomputed import insights, scores
from tests.recomputed.comparison import NEAR, Recomputed, check_more_labels, check_reason, costs, more_labels
from tests.recomputed.inference import Row
from tests.recomputed.page import Cell, Figure, Node, Table, figures_in, parse, table_of
from tests.recomputed.printed import Checks, fits, in_words, read
from tests.recomputed.scores import LOWER_IS_BETTER
from tests.recomputed.stored import Stored, Trial

FITTED = 1e-4
"""Of numbers that hang on a temperature, which two searches find to so many digits."""
SIX_DIGITS = 6e-6
"""Of numbers printed with six digits."""
Records = Sequence[dict[str, Any]]


def check_page(stored: Stored, found: Recomputed, checks: Checks) -> None:
    """Checks every number of the page, and lists the tables whose numbers are not recomputed."""
    page = parse(stored.page)
    _Page(stored, found, checks, page).check()


class _Page:
    def __init__(self, stored: Stored, found: Recomputed, checks: Checks, page: Node) -> None:
        self.stored, self.found, self.checks, self.page = stored, found, checks, page
        self.data = list(found.outcomes)

    def check(self) -> None:
        self._answer()
        self._configurations()
        self._labels()
        self._figures()
        self._tables()
        self._more_labels()
        self._audits()
        self._recipe()

    def _answer(self) -> None:
        answer = self.page.named("answer")
        self.checks.equal("page: recommended", answer.one("strong").text() or None, self.found.recommended)
        reason = " ".join(self.stored.comparison["verdict"]["reason"].split())
        self.checks.equal("page: answer has the reason of comparison.json", reason in answer.text(), True)
        check_reason("page: answer", answer.one("div", "answer").text(), self.found, self.checks)
        claims = self.stored.comparison["claims"]
        points = [point.text() for point in answer.one("ul", "points").all("li")]
        self.checks.equal("page: number of key points", len(points), len(claims))
        for point, claim in zip(points, claims, strict=False):
            text = " ".join(claim["text"].split())
            self.checks.equal(
                f"page: key point {text[:50]!r} is a claim of comparison.json", point.startswith(text), True
            )
        for tile in answer.one("dl", "tiles").all("div"):
            self._tile(tile.one("dt").text(), tile.one("dd", "value").text(), tile.one("dd", "detail").text())

    def _tile(self, name: str, value: str, detail: str) -> None:
        trials, rows = self.stored.trials, self.found.rows
        where = f"page: tile {name!r}"
        best = insights.best_first([row for row in rows if math.isfinite(row.mean)] or rows)[0]
        if name == "Finished":
            counts = [
                sum(one.row["status"] == status for one in trials)
                for status in ("done", "failed", "running", "pending")
            ]
            self.checks.printed(where, value, counts[0])
            self.checks.among(where, detail, [len(trials), *counts[1:], counts[2] + counts[3]])
        elif "mean" in name:
            self.checks.printed(where, value, best.mean)
            self.checks.among(where, detail, [], self.found.names)
        elif name == "Most frequent answer":
            self.checks.printed(where, value, _majority(best))
        elif name.endswith("texts"):
            self.checks.printed(where, value, best.texts)
            self.checks.among(where, detail, [len(best.first.label_names)])
        else:
            self.checks.skip(f"tile {name}")

    def _configurations(self) -> None:
        overviews = [table_of(node) for node in self.page.named("configurations").all("table", "overview")]
        self.checks.equal("page: tables of configurations", len(overviews), len(self.data))
        for name, table in zip(self.data, overviews, strict=False):
            rows = self.found.outcomes[name].rows
            shown = [row for line in table.rows if (row := self.found.row(line["Configuration"].text))]
            self.checks.equal(f"page: configurations on {name}", len(shown), len(rows))
            means = [row.mean for row in insights.best_first(shown)]
            for row, line, mean in zip(shown, table.rows, means, strict=False):
                where = f"page: configurations, {row.name!r}"
                self.checks.close(f"{where}, its place by mean", row.mean if math.isfinite(row.mean) else None, mean)
                self._overview_line(where, row, line)
        for node in self.page.named("configurations").all("table", "overview"):
            for body in node.all("tbody"):
                self._marks(body)
        self._tests()

    def _overview_line(self, where: str, row: Row, line: dict[str, Cell]) -> None:
        known = costs(row)
        names = {
            "Trained": "trainable", "Bundle": "bundle_bytes", "Time": "seconds", "Peak memory": "peak_bytes",
            "Operations": "operations", "Texts/s in training": "texts_per_second",
            "Texts/s in evaluation": "evaluation_texts_per_second", "Operations to serve a text": "serving_operations",
        }  # fmt: skip
        for place, (title, cell) in enumerate(line.items()):
            if place == 0:
                continue
            if place == 1:
                self._number(f"{where}, {title}", cell, row.mean)
                self._ends(f"{where}, interval", cell.under, row.interval)
            elif title == "Seeds":
                self._number(f"{where}, {title}", Cell(cell.text.partition(" of ")[0], "", cell.value), len(row.scores))
                self.checks.equal(
                    f"{where}, trials", cell.text.partition(" of ")[2] or str(len(row.scores)), str(len(row.trials))
                )
                self.checks.printed(f"{where}, spread over seeds", cell.under, row.spread)
            elif title in names:
                self._number(f"{where}, {title}", cell, known[names[title]])
                parts = row.first.parameters
                if title == "Trained" and cell.under:
                    for text, key in zip(cell.under.split(" + "), ("adapter", "head"), strict=True):
                        self.checks.printed(f"{where}, {key}", text, parts[key])
            else:
                self.checks.skip(f"column {title!r} of the table of configurations")

    def _marks(self, body: Node) -> None:
        row = self.found.row(body.one("span", "name").text())
        if row is None:
            return
        where = f"page: configurations, marks of {row.name!r}"
        standing = self.found.outcomes[row.data].standing[row.name]
        tied = standing in NEAR and row.has_known_spread and not row.degenerate
        self.checks.equal(f"{where}, tied", any(body.all("span", "tied")), tied)
        self.checks.equal(f"{where}, degenerate", any(body.all("span", "degenerate")), bool(row.degenerate))
        self.checks.equal(
            f"{where}, recommended", any(body.all("span", "recommended")), row.name == self.found.recommended
        )
        for mark in body.all("span", "failed"):
            self.checks.among(where, mark.text(), [len(row.failed)])
        reasons = [number for numbers in row.degenerate.values() for number in numbers]
        failures = [str(one.row["reason"]) for one in row.failed]
        for problem in body.all("tr", "problems"):
            seeds = [float(one.row["seed"]) for one in row.trials]
            self.checks.among(where, problem.text(), [*reasons, *seeds], [*failures, *self.found.names])

    def _tests(self) -> None:
        group = self.page.named("tests")
        tests = [(test, one) for one in self.found.outcomes.values() for test in one.tests]
        if not tests:
            self.checks.equal("page: tests of pairs", group.tag, "")
            return
        rows = table_of(group.one("table")).rows
        self.checks.equal("page: number of tests", len(rows), min(len(tests), 200))
        for line, (test, of_data) in zip(rows, tests, strict=False):
            where = f"page: test of {test.a.name!r} and {test.b.name!r}"
            pair = line.pop("Configuration").text, line.pop("Against").text
            self.checks.equal(where, pair, (" ".join(test.a.name.split()), " ".join(test.b.name.split())))
            adjusted = of_data.adjusted.get(id(test))
            ends = line.pop("95 % interval")
            self._ends(f"{where}, interval", ends.text, test.interval)
            self.checks.close(f"{where}, low", ends.number, test.interval and test.interval[0])
            shown = bool(line["Difference"].under)
            self.checks.equal(f"{where}, demonstrated", shown, adjusted is not None and adjusted < 0.05)
            numbers = {
                "Difference": test.difference, "Seeds": test.seeds, "p over seeds": test.p_seeds,
                "p over texts": test.p_texts, "p adjusted": adjusted, "Seeds needed": of_data.needed,
            }  # fmt: skip
            for title, cell in line.items():
                if title in numbers:
                    self._number(f"{where}, {title}", cell, numbers[title])
                elif title != "Data":
                    self.checks.skip(f"column {title!r} of the tests of pairs")

    def _number(self, where: str, cell: Cell, expected: float | None, relative: float = 1e-6) -> None:
        """Checks a cell: what is read, and what it is sorted by."""
        self.checks.printed(where, cell.text, expected, relative)
        if cell.value is not None:
            self.checks.close(f"{where}, sorted by", cell.number, expected, relative)

    def _ends(self, where: str, text: str, ends: tuple[float, float] | None) -> None:
        low, _, high = text.partition(" to ")
        self.checks.printed(f"{where}, low", low, ends and ends[0])
        self.checks.printed(f"{where}, high", high, ends and ends[1])

    def _labels(self) -> None:
        section = self.page.named("labels")
        titles = [node.text() for node in section.all("h3") if node.text().startswith("Scores by label of ")]
        for title, node in zip(titles, section.all("table", "labels"), strict=True):
            row = self.found.row(title.removeprefix("Scores by label of "))
            if row is None:
                self.checks.wrong.append(f"page: {title!r} names no configuration")
                continue
            expected = {one["label"]: one for one in _label_records(row)}
            lines = table_of(node).rows
            self.checks.equal(f"page: {title!r}, labels", len(lines), len(expected))
            for line in lines:
                known = expected[line["Label"].text]
                for heading, key in (("Texts", "support"), ("Precision", "precision"), ("Recall", "recall"), ("F1", "f1"),
                                     ("ROC-AUC", "roc_auc"), ("Threshold", "threshold")):  # fmt: skip
                    if heading in line:
                        self.checks.printed(
                            f"page: {title!r}, {known['label']}, {heading}", line[heading].text, known[key]
                        )
                if "Threshold" in line and line["Threshold"].under:
                    ends = known["threshold lowest"], known["threshold highest"]
                    self._ends(f"page: {title!r}, {known['label']}, thresholds", line["Threshold"].under, ends)

    def _figures(self) -> None:
        recomputed: list[tuple[str, Callable[[Figure], Records | None], float]] = [
            (r"score(-\d.*)?", self._score, SIX_DIGITS),
            (r"cost-(trainable|seconds)(-\d.*)?", self._cost, SIX_DIGITS),
            (r"curve-.*", self._curve, SIX_DIGITS),
            (r"loss(-\d.*)?-\d+", self._loss, SIX_DIGITS),
            (r"sweep-.*-(validation|test)", self._sweep, SIX_DIGITS),
            (r"expected-best.*", self._expected_best, SIX_DIGITS),
            (r"data-curve-score.*", self._data_curve, SIX_DIGITS),
            (r"confusion(-\d.*)?-\d+", self._confusion, SIX_DIGITS),
            (r"labels(-\d.*)?", self._by_label, SIX_DIGITS),
            (r"reliability-\d+", self._reliability, FITTED),
            (r"audit-\d+-labels", self._class_counts, SIX_DIGITS),
            (r"audit-\d+-tokens", self._token_lengths, SIX_DIGITS),
        ]
        for figure in figures_in(self.page):
            records, relative = None, SIX_DIGITS
            for pattern, make, digits in recomputed:
                if records is None and re.fullmatch(pattern, figure.key):
                    records, relative = make(figure), digits
            if records is None:
                self.checks.skip(f"figure {figure.key}")
            else:
                self._against(figure, records, relative)
            self._words(figure)
            self._drawn(figure)

    def _against(self, figure: Figure, records: Records, relative: float) -> None:
        """Checks a figure's table of numbers, line by line, in whatever order lines of the same names stand."""
        where = f"page: numbers of {figure.key}"
        self.checks.equal(f"{where}, lines", len(figure.table.rows), min(len(records), 600))
        rest = [{key: value for key, value in record.items() if not _is_unknown(value)} for record in records]
        for line in figure.table.rows:
            texts = {title: cell.text for title, cell in line.items()}
            record = next((one for one in rest if _names_agree(texts, one)), None)
            if record is None:
                self.checks.wrong.append(f"{where}: no such line is recomputed: {texts}")
                continue
            rest.remove(record)
            for title, text in texts.items():
                if title in record and isinstance(record[title], int | float) and not isinstance(record[title], bool):
                    self.checks.printed(f"{where}, {title} of {_label_of(texts)}", text, record[title], relative)
                elif title in record:
                    self.checks.equal(f"{where}, {title} of {_label_of(texts)}", text, _words(record[title]))
                elif title in ("settings", "others", "data"):
                    continue
                elif text not in ("", "None", "nan"):
                    self.checks.skip(f"column {title!r} of figure {figure.key}")

    def _words(self, figure: Figure) -> None:
        """Checks that the numbers of a figure's text alternative and caption stand in its table, or are sums of it."""
        pool: list[float] = []
        for title in figure.table.columns:
            values = [one for line in figure.table.rows if (one := _value(line[title].text)) is not None]
            pool += [*values, math.fsum(values), len(values)]
        pool += [len(self.found.rows), *range(1, 30), *self._facts_of(figure)]
        if "true" in figure.table.columns:
            same = [line["texts"].text for line in figure.table.rows if line["true"].text == line["predicted"].text]
            pool.append(sum(float(text) for text in same))
        if {"score", "seed", "configuration"} <= set(figure.table.columns):
            pool += self._means_of(figure)
        names = [*self.found.names, "95 %", *(f"f{one}" for one in range(10))]
        self.checks.among(f"page: words of {figure.key}", figure.words, pool, names)
        self.checks.among(f"page: caption of {figure.key}", figure.caption, pool, names)

    def _means_of(self, figure: Figure) -> list[float]:
        """Returns the mean over seeds of each configuration in the table, and what its settings have of numbers."""
        pool: list[float] = []
        for name in dict.fromkeys(line["configuration"].text for line in figure.table.rows):
            lines = [line for line in figure.table.rows if line["configuration"].text == name]
            pool.append(statistics.fmean(float(line["score"].text) for line in lines))
            if row := self.found.row(name):
                pool += [float(one) for one in row.first.settings.values() if isinstance(one, int | float)]
        return pool

    def _facts_of(self, figure: Figure) -> list[float]:
        if not figure.key.startswith("audit-"):
            return []
        audit = self._audit_of(figure)
        lengths = audit.get("token_lengths") or {}
        return [float(one) for one in [*lengths.values(), *audit.values()] if isinstance(one, int | float)]

    def _drawn(self, figure: Figure) -> None:
        """Checks that the numbers of the drawing are those of the table, so far as they have the same names."""
        columns = {title.replace(" ", "_"): title for title in figure.table.columns}
        own = [
            rows
            for rows in figure.drawn
            if rows and set(columns) <= set(rows[0]) and len(rows) >= len(figure.table.rows)
        ]
        if not own and figure.table.rows:
            self.checks.skip(f"the drawing of figure {figure.key}, which has its numbers under other names")
        for rows in own[:1]:
            for drawn, line in zip(rows, figure.table.rows, strict=False):
                for name, title in columns.items():
                    where = f"page: drawing of {figure.key}, {title}"
                    if isinstance(drawn[name], int | float) and not isinstance(drawn[name], bool):
                        self.checks.printed(where, line[title].text, float(drawn[name]), SIX_DIGITS)

    def _data_of(self, key: str, stem: str) -> str:
        """Returns the data set that a figure is about: the first, or that of the number which follows the stem."""
        found = re.match(rf"{stem}-(\d+)-", key + "-")
        return self.data[int(found[1]) - 1] if found and len(self.data) > 1 else self.data[0]

    def _standing(self, row: Row) -> str:
        if row.degenerate:
            return "degenerate"
        near = self.found.outcomes[row.data].standing[row.name] in NEAR
        return "tied with the best" if near else "below the best"

    def _score(self, figure: Figure) -> Records:
        rows = [row for row in self.found.outcomes[self._data_of(figure.key, "score")].rows if math.isfinite(row.mean)]
        majority = _majority(insights.best_first(rows)[0])
        return [
            {"configuration": row.name, "seed": seed, "score": score, "mean": row.mean, "standing": self._standing(row),
             "low": row.interval and row.interval[0], "high": row.interval and row.interval[1], "majority": majority}
            for row in rows
            for seed, score in row.scores.items()
        ]  # fmt: skip

    def _cost(self, figure: Figure) -> Records:
        cost = figure.key.split("-")[1]
        rows = self.found.outcomes[self._data_of(figure.key, f"cost-{cost}")].rows
        rows = [row for row in rows if math.isfinite(row.mean) and costs(row)[cost]]
        sign = -1.0 if rows[0].metric in LOWER_IS_BETTER else 1.0
        points = [(float(costs(row)[cost] or 0.0), sign * row.mean) for row in rows]
        records = []
        for row, (paid, gain) in zip(rows, points, strict=True):
            others = [point for one, point in zip(rows, points, strict=True) if not one.degenerate]
            beaten = any(p <= paid and g >= gain and (p < paid or g > gain) for p, g in others)
            values = list(row.scores.values())
            records.append(
                {"configuration": row.name, cost: paid, "mean": row.mean, "standing": self._standing(row),
                 "low": row.interval and row.interval[0], "high": row.interval and row.interval[1],
                 "lowest": min(values), "highest": max(values), "on front": not row.degenerate and not beaten}
            )  # fmt: skip
        return records

    def _curve(self, figure: Figure) -> Records:
        axis = "epoch" if "epoch" in figure.table.columns else "step"
        metric = self._metric_of(figure)
        records = []
        for name in dict.fromkeys(line["configuration"].text for line in figure.table.rows):
            row = self.found.row(name)
            if row is None:
                continue
            trials = [one for one in row.trials if one.row["status"] != "failed"]
            points = [(epoch if axis == "epoch" else step, _measured(values, metric))
                      for one in trials for step, epoch, values in one.history]  # fmt: skip
            records += [{"configuration": row.name, axis: at, **band} for at, band in _banded(points)]
        return records

    def _metric_of(self, figure: Figure) -> str:
        known = {name for one in self.stored.trials for _, _, values in one.history for name in values} | {"loss"}
        after = figure.key.removeprefix("curve-")
        fitting = [name for name in known if f"{after}-".startswith(f"{name.replace('_', '-')}-")]
        return max(fitting, key=len)

    def _loss(self, figure: Figure) -> Records | None:
        row = self.found.row(figure.title)
        if row is None:
            return None
        records = []
        training = [pair for one in row.trials for pair in _thinned(one.losses)]
        validation = [(float(step), _measured(values, "loss")) for one in row.trials for step, _, values in one.history]
        for split, points in (("training", training), ("validation", validation)):
            records += [{"split": split, "step": at, **band} for at, band in _banded(points)]
        return records

    def _sweep(self, figure: Figure) -> Records:
        split = figure.key.rpartition("-")[2]
        fixed = {"configuration", "others", "seed", "score"}
        axis = next(title for title in figure.table.columns if title not in fixed)
        records = []
        for name in dict.fromkeys(line["configuration"].text for line in figure.table.rows):
            row = self.found.row(name)
            for one in row.scored(split) if row else []:
                value = one.settings[axis.replace(" ", "_")]
                score = one.score(split, row.metric if row else "")
                records.append({"configuration": name, axis: value, "seed": one.row["seed"], "score": score})
        return records

    def _expected_best(self, figure: Figure) -> Records:
        records = []
        for name, rows in self._entries().items():
            if f"expected-best-{_key(name[0])}" == figure.key or len(self.data) == 1:
                records += [
                    {"data": name[0], "backbone": name[1], "method": name[2], "settings tried": tried,
                     "validation": validation, "scored": scored}
                    for tried, validation, scored in insights.expected_best(rows)
                ]  # fmt: skip
        return records

    def _entries(self) -> dict[tuple[str, str, str], list[Row]]:
        """Returns the trained rows by data, backbone and the method's entry in the recipe."""
        found: dict[tuple[str, str, str], list[Row]] = {}
        for row in self.found.rows:
            if not row.is_baseline:
                found.setdefault((row.data, row.first.row["backbone"], row.first.entry), []).append(row)
        return found

    def _data_curve(self, figure: Figure) -> Records:
        records = []
        for name, points in self.found.curves.items():
            for share, row in points:
                if len(self.data) > 1 and figure.key != f"data-curve-score-{_key(row.data)}":
                    continue
                texts = row.first.row.get("train_texts")
                records.append(
                    {"name": name, "data": row.data, "metric": row.metric, "share": share, "texts": texts,
                     "seeds": len(row.scores), "mean": row.mean, "failed": len(row.failed),
                     "low": row.interval and row.interval[0], "high": row.interval and row.interval[1]}
                )  # fmt: skip
        return records

    def _confusion(self, figure: Figure) -> Records | None:
        row = self.found.row(figure.title)
        if "absent" in {line["true"].text for line in figure.table.rows} and row is None:
            return self._label_confusion(figure)
        if row is None:
            return None
        names = row.first.label_names
        truth = np.concatenate([one.predictions[row.split][0] for one in insights.usable(row)])
        chosen = np.concatenate([one.decided(row.split) for one in insights.usable(row)])
        return _cells(truth, chosen, names)

    def _label_confusion(self, figure: Figure) -> Records | None:
        data = self.data[0] if len(self.data) == 1 else self._data_of(figure.key, "confusion")
        lead = self._lead(data)
        if lead is None or figure.title not in lead.first.label_names:
            return None
        label = lead.first.label_names.index(figure.title)
        trials = insights.usable(lead)
        truth = np.concatenate([one.predictions[lead.split][0][:, label] for one in trials])
        chosen = np.concatenate([one.decided(lead.split)[:, label] for one in trials])
        return _cells(truth, chosen, ["absent", "present"])

    def _lead(self, data: str) -> Row | None:
        """Returns the row of which most is shown: the recommended one, else the best."""
        rows = [row for row in insights.best_first(self.found.outcomes[data].rows) if math.isfinite(row.mean)]
        return next((row for row in rows if row.name == self.found.recommended), rows[0] if rows else None)

    def _by_label(self, figure: Figure) -> Records:
        names = dict.fromkeys(line["configuration"].text for line in figure.table.rows)
        return [one for name in names if (row := self.found.row(name)) for one in _label_records(row)]

    def _reliability(self, figure: Figure) -> Records | None:
        row = self.found.row(figure.title)
        if row is None:
            return None
        return [
            {"stage": stage, "low": low, "high": high, "count": count, "confidence": confidence, "correct": correct,
             "configuration": row.name}
            for stage, bins in insights.calibration(row).bins.items()
            for low, high, count, confidence, correct in bins
        ]  # fmt: skip

    def _audit_of(self, figure: Figure) -> dict[str, Any]:
        return self.stored.audit(list(self.stored.data)[int(figure.key.split("-")[1]) - 1])

    def _class_counts(self, figure: Figure) -> Records:
        """Returns the texts by label: of validation and test from the predictions, of training from the audit."""
        place = int(figure.key.split("-")[1]) - 1
        name = list(self.stored.data)[place]
        audit = self.stored.audit(name)
        first = next((one for one in self.stored.trials if one.row["data"] == name and one.is_done), None)
        records = []
        for split, title in (("train", "training"), ("validation", "validation"), ("test", "test")):
            counts, size = dict(audit["class_counts"][split]), audit[split]
            if first is not None and first.texts(split):
                held = first.sets(first.predictions[split][0]).sum(axis=0)
                counts, size = dict(zip(first.label_names, held.tolist(), strict=True)), first.texts(split)
            records += [{"label": label, "split": title, "texts": number, "share": number / size}
                        for label, number in counts.items() if size]  # fmt: skip
        return records

    def _token_lengths(self, figure: Figure) -> Records:
        lengths = self._audit_of(figure)["token_lengths"]
        ends = zip(lengths["edges"][:-1], lengths["edges"][1:], lengths["counts"], strict=True)
        return [{"from": low, "to": high, "texts": texts} for low, high, texts in ends]

    def _tables(self) -> None:
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
            values = {key: [one for one in dict.fromkeys(str(row.first.settings.get(key)) for row in rows) if one != "None"]
                      for key in rows[0].first.settings} if rows else {}  # fmt: skip
            numbers = [
                float(value)
                for known in values.values()
                if len(known) > 1
                for value in known
                if _value(value) is not None
            ]
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

    def _more_rows(self, name: str) -> list[Row]:
        """Returns the rows that are looked at more closely, the one to ship first, without what learned nothing."""
        rows = [row for row in insights.best_first(self.found.outcomes[name].rows) if row.scored()]
        chosen = self.found.outcomes[name].chosen
        wanted = [self.found.recommended, chosen.name if chosen else None]
        lead = next((row for one in wanted for row in rows if row.name == one), None)
        return insights.telling([lead, *(row for row in rows if row is not lead)] if lead else rows)[:6]

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
            where = f"page: threshold for {line['Wished'].text} {line['At least'].text} of {line['Label'].text!r}"
            found = insights.operating_point(
                row, line["Label"].text, line["Wished"].text, least.value if least else 0.0
            )
            titles = {"Seeds that reach it": "reached", "Seeds": "seeds", "Threshold": "threshold",
                      "Precision": "precision", "Recall": "recall"}  # fmt: skip
            for title, key in titles.items():
                self._number(f"{where}, {title}", line[title], found[key], FITTED)
        wished = len(insights.WISHES) * sum(len(row.first.label_names) if row.first.several else len(row.first.label_names) == 2
                                            for row in leads.values() if not row.is_baseline)  # fmt: skip
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

    def _same_texts(self, name: str, row: Row) -> Any:
        held = self.stored.texts(name, self.found.split)
        return held if held is not None and len(held.texts) == row.texts else None

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

    def _more_labels(self) -> None:
        section = self.page.named("data-curve")
        pool = bool(more_labels(self.found)) and bool(self.found.curves)
        for node in (one for one in section.content if isinstance(one, Node) and one.tag == "p" and pool):
            check_more_labels("page: would more labels help", node.text(), self.found, self.checks)

    def _audits(self) -> None:
        """Checks the facts of the data against the audit, and its split sizes against the predictions."""
        section = self.page.named("data")
        facts = list(section.all("dl", "facts"))
        numbers: list[float] = []
        for name in self.stored.data:
            audit = self.stored.audit(name)
            numbers += _numbers_in(audit)
            total = sum(audit.get(split) or 0 for split in ("train", "validation", "test"))
            near = audit.get("near_leaks")
            numbers += [sum(near.values())] if isinstance(near, dict) else []
            numbers += [audit[key] / total for key in ("truncated", "windowed") if audit.get(key) is not None and total]
        for one in facts:
            for pair in one.all("div"):
                where = f"page: data, {pair.one('dt').text()!r}"
                self.checks.among(where, pair.one("dd").text(), numbers)
        first = {name: next((one for one in self.stored.trials if one.row["data"] == name and one.is_done), None)
                 for name in self.stored.data}  # fmt: skip
        for (name, trial), one in zip(first.items(), facts, strict=False):
            pairs = {pair.one("dt").text(): pair.one("dd").text() for pair in one.all("div")}
            for split in ("validation", "test"):
                if trial is not None and trial.texts(split):
                    where = f"page: {split} texts of {name}"
                    self.checks.printed(where, pairs.get(f"{split.capitalize()} texts", ""), trial.texts(split))

    def _recipe(self) -> None:
        codes = ["".join(map(str, code.content)) for code in self.page.named("repeat").all("code")]
        path = self.stored.folder / "recipe.toml"
        self.checks.equal("page: recipe", codes[-1].strip() if codes else "", path.read_text("utf-8").strip())
        if any(self.page.named("repeat").all("dl", "facts")):
            self.checks.skip("the environment: versions and hardware")
        if any(self.page.named("configurations").all("details", "shared")):
            self.checks.skip("settings that all configurations share: they are the recipe's")


def _names_agree(texts: dict[str, str], record: dict[str, Any]) -> bool:
    """Returns whether a line is that of a record: the same words, and the same numbers that tell lines apart."""
    for title, text in texts.items():
        value = record.get(title)
        if isinstance(value, str) and text != " ".join(value.split()) and title != "standing":
            return False
        keys = ("seed", "epoch", "step", "share", "settings tried", "low", "from")
        if title in keys and isinstance(value, int | float):
            found = read(text)
            if found is None or not fits(found, float(value), SIX_DIGITS):
                return False
    return True


def _label_of(texts: dict[str, str]) -> str:
    keys = ("configuration", "name", "method", "label", "true", "predicted", "split", "stage", "seed", "step", "epoch")
    return ", ".join(texts[key] for key in keys if key in texts)


def _words(value: object) -> str:
    return " ".join(str(value).split())


def _value(text: str) -> float | None:
    try:
        found = read(text)
    except ValueError:
        return None
    return found.value if found else None


def _is_unknown(value: object) -> bool:
    return value is None or (isinstance(value, float) and not math.isfinite(value))


def _key(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def _numbers_in(value: Any) -> list[float]:
    if isinstance(value, dict):
        return [number for one in value.values() for number in _numbers_in(one)]
    return [float(value)] if isinstance(value, int | float) else []


def _cells(truth: Any, chosen: Any, names: Sequence[str]) -> Records:
    """Returns the cells of a table of confusion; of a large one those that hold texts."""
    return [
        {"true": one, "predicted": other, "texts": int(((truth == i) & (chosen == j)).sum()),
         "share": float(((truth == i) & (chosen == j)).sum() / max((truth == i).sum(), 1))}
        for i, one in enumerate(names)
        for j, other in enumerate(names)
        if len(names) <= 12 or ((truth == i) & (chosen == j)).any()
    ]  # fmt: skip


def _label_records(row: Row) -> Records:
    """Returns each label's scores against the rest, means over seeds."""
    trials = insights.usable(row)
    records = []
    for place, label in enumerate(row.first.label_names):
        found: dict[str, list[float]] = {name: [] for name in ("precision", "recall", "f1", "roc_auc")}
        support = 0
        for one in trials:
            truth = one.sets(one.predictions[row.split][0])[:, place]
            chosen = one.sets(one.decided(row.split))[:, place]
            support, hits = int(truth.sum()), int((truth & chosen).sum())
            found["precision"].append(hits / int(chosen.sum()) if chosen.any() else 0.0)
            found["recall"].append(hits / support if support else 0.0)
            found["f1"].append(2 * hits / (support + int(chosen.sum())) if support or chosen.any() else 0.0)
            found["roc_auc"].append(_area(one, row.split, place))
        record: dict[str, Any] = {"label": label, "support": support, "configuration": row.name, "seeds": len(trials)}
        record |= {name: statistics.fmean(values) for name, values in found.items()}
        record["roc auc"] = record["roc_auc"]
        record |= {"f1 lowest": min(found["f1"]), "f1 highest": max(found["f1"])}
        if row.first.several:
            own = [float(one.thresholds[place]) for one in trials]
            record |= {"threshold": statistics.fmean(own), "threshold lowest": min(own), "threshold highest": max(own)}
        records.append(record)
    return records


def _area(trial: Trial, split: str, label: int) -> float:
    return float(trial.judged(split).areas()[label])


def _majority(row: Row) -> float | None:
    """Returns what always giving the most frequent answer scores, where that says something."""
    labels = row.scored()[0].predictions[row.split][0]
    if row.first.several:
        if row.metric != "exact_match":
            return None
        return float(np.unique(labels, axis=0, return_counts=True)[1].max() / len(labels))
    if not row.metric.startswith(("accuracy", "f1", "precision", "recall")):
        return None
    most = np.bincount(labels).argmax()
    logits = np.tile(np.eye(len(row.first.label_names))[most], (len(labels), 1))
    return scores.Judged(labels, logits, np.full(len(labels), most), False).score(row.metric)


def _measured(values: dict[str, float], metric: str) -> float:
    value = values.get(metric, values.get("log_loss") if metric == "loss" else None)
    return math.nan if value is None else value


def _thinned(losses: Sequence[tuple[int, float]]) -> list[tuple[float, float]]:
    """Returns at most 60 points, each the mean over neighbouring steps; the first groups are the larger ones."""
    groups = min(60, len(losses))
    sizes = [len(losses) // groups + (place < len(losses) % groups) for place in range(groups)] if groups else []
    found, start = [], 0
    for size in sizes:
        part = losses[start : start + size]
        found.append((statistics.fmean(step for step, _ in part), statistics.fmean(loss for _, loss in part)))
        start += size
    return found


def _banded(points: Iterable[tuple[float, float]]) -> list[tuple[float, dict[str, float]]]:
    """Returns by step the seeds, their mean, lowest and highest; of many steps 60, evenly."""
    by_step: dict[float, list[float]] = {}
    for step, value in points:
        if math.isfinite(value):
            by_step.setdefault(float(step), []).append(value)
    steps = sorted(by_step)
    if len(steps) > 60:
        steps = [steps[round(place)] for place in np.linspace(0, len(steps) - 1, 60)]
    return [
        (step, {"seeds": len(v := by_step[step]), "mean": statistics.fmean(v), "lowest": min(v), "highest": max(v)})
        for step in steps
    ]
