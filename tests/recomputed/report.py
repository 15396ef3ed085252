"""`index.html` against what follows from a run's predictions and its ledger: each table, figure and sentence."""

from __future__ import annotations

import math
from typing import Any

from tests.recomputed import insights
from tests.recomputed.comparison import Recomputed, check_more_labels, check_reason, costs, last_steps
from tests.recomputed.context import Context
from tests.recomputed.figures import Figures
from tests.recomputed.inference import Row
from tests.recomputed.page import Cell, Node, parse, table_of
from tests.recomputed.printed import Checks
from tests.recomputed.stored import Stored
from tests.recomputed.tables import Tables
from tests.recomputed.verdict import NEAR

LABEL_COLUMNS = {
    "Texts": "support", "Precision": "precision", "Recall": "recall", "F1": "f1", "ROC-AUC": "roc_auc",
    "Threshold": "threshold",
}  # fmt: skip


def check_page(stored: Stored, found: Recomputed, checks: Checks) -> None:
    """Checks every number of the page, and lists the tables whose numbers are not recomputed."""
    page = parse(stored.page)
    for part in (_Page, Figures, Tables):
        part(stored, found, checks, page).check()


class _Page(Context):
    """Checks what has a place of its own on the page."""

    def check(self) -> None:
        self._answer()
        self._configurations()
        self._labels()
        self._more_labels()
        self._audits()
        self._recipe()

    def _answer(self) -> None:
        answer = self.page.named("answer")
        of_data = self.found.outcomes
        wanted = [" ".join(one.recommended.split()) for one in of_data.values() if one.recommended]
        box = answer.one("div", "answer")
        self.checks.equal("page: recommended", [one.text() for one in box.all("strong")], wanted)
        leads = [one.text() for one in box.all("p", "recommended")]
        self.checks.equal("page: answers", len(leads), len(of_data))
        for lead, (name, one) in zip(leads, of_data.items(), strict=False):
            self.checks.equal(f"page: answer on {name}", lead.startswith("Recommended"), one.recommended is not None)
            self.checks.equal(f"page: answer on {name} names it", f" on {name}" in lead, len(of_data) > 1)
            reason = " ".join(self.stored.comparison["verdicts"][name]["reason"].split())
            self.checks.equal(f"page: answer on {name} has its reason", reason in box.text(), True)
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
        elif name.startswith("Mean"):
            row = self.found.row(detail)
            self.checks.equal(f"{where}, whose it is", detail, " ".join((self.found.recommended or "–").split()))
            self.checks.printed(where, value, row.mean if row else None)
        elif name == "Most frequent answer":
            self.checks.printed(where, value, insights.majority(best))
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
            "Trained": "trainable", "Weights": "bundle_bytes", "Time": "seconds", "Peak memory": "peak_bytes",
            "Operations": "operations", "Texts/s in training": "texts_per_second",
            "Texts/s in evaluation": "evaluation_texts_per_second", "Operations per text served": "serving_operations",
        }  # fmt: skip
        for place, (title, cell) in enumerate(line.items()):
            if place == 0:
                continue
            if place == 1:
                self._number(f"{where}, {title}", cell, row.mean)
                self._ends(f"{where}, interval", cell.under, row.interval)
            elif title == "Validation":
                self._number(f"{where}, {title}", cell, row.validation)
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
        said = [one.text() for one in body.all("span", "tied")]
        known = ["tied with the best"] * tied + ["better, but not chosen"] * (standing == "ahead")
        self.checks.equal(f"{where}, tied", said, known)
        self.checks.equal(f"{where}, degenerate", any(body.all("span", "degenerate")), bool(row.degenerate))
        self.checks.equal(
            f"{where}, recommended",
            any(body.all("span", "recommended")),
            row.name == self.found.outcomes[row.data].recommended,
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

    def _labels(self) -> None:
        section = self.page.named("labels")
        titles = [node.text() for node in section.all("h3") if node.text().startswith("Scores by label of ")]
        for title, node in zip(titles, section.all("table", "labels"), strict=True):
            row = self.found.row(title.removeprefix("Scores by label of "))
            if row is None:
                self.checks.wrong.append(f"page: {title!r} names no configuration")
                continue
            expected = {one["label"]: one for one in insights.label_records(row)}
            lines = table_of(node).rows
            self.checks.equal(f"page: {title!r}, labels", len(lines), len(expected))
            for line in lines:
                known = expected[line["Label"].text]
                for heading, key in LABEL_COLUMNS.items():
                    if heading in line:
                        self.checks.printed(
                            f"page: {title!r}, {known['label']}, {heading}", line[heading].text, known[key]
                        )
                if "Threshold" in line and line["Threshold"].under:
                    ends = known["threshold lowest"], known["threshold highest"]
                    self._ends(f"page: {title!r}, {known['label']}, thresholds", line["Threshold"].under, ends)

    def _more_labels(self) -> None:
        """Checks the sentences above the curves over data size; key points are claims, and checked as those."""
        section = self.page.named("data-curve")
        notes = [one for one in section.content if isinstance(one, Node) and one.tag == "p"]
        steps = last_steps(self.found) if section.tag else []
        # After them stands one that explains the sizes.
        self.checks.equal("page: sentences on more labels", len(notes), len(steps) + 1 if steps else 0)
        for node, step in zip(notes, steps, strict=False):
            check_more_labels("page: on more labels", node.text(), step, len(steps), self.found, self.checks)

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
        self.checks.equal(
            "page: recipe", codes[-1].strip() if codes else "", _without_folders(path.read_text("utf-8").strip())
        )
        if any(self.page.named("repeat").all("dl", "facts")):
            self.checks.skip("the environment: versions and hardware")
        if any(self.page.named("configurations").all("details", "shared")):
            self.checks.skip("settings that all configurations share: they are the recipe's")


def _numbers_in(value: Any) -> list[float]:
    if isinstance(value, dict):
        return [number for one in value.values() for number in _numbers_in(one)]
    return [float(value)] if isinstance(value, int | float) else []


def _without_folders(recipe: str) -> str:
    """Returns a recipe whose absolute paths are left with their last part."""
    parts = recipe.split('"')
    return '"'.join(part.rpartition("/")[2] if part.startswith("/") else part for part in parts)
