"""The figures of the page: their numbers, what is drawn, and their words."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from tests.recomputed import insights
from tests.recomputed.comparison import costs
from tests.recomputed.context import Context
from tests.recomputed.page import Figure, figures_in
from tests.recomputed.printed import fits, read
from tests.recomputed.scores import LOWER_IS_BETTER

FITTED = 1e-4
"""Of numbers that hang on a temperature, which two searches find to so many digits."""
SIX_DIGITS = 6e-6
"""Of numbers printed with six digits."""
Records = Sequence[dict[str, Any]]


class Figures(Context):
    """Checks every figure of a page."""

    def check(self) -> None:
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

    def _score(self, figure: Figure) -> Records:
        rows = [row for row in self.found.outcomes[self._data_of(figure.key, "score")].rows if math.isfinite(row.mean)]
        majority = insights.majority(insights.best_first(rows)[0])
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
                several = len({backbone for data, backbone, _ in self._entries() if data == name[0]}) > 1
                method = f"{name[2]} · {name[1]}" if several else name[2]
                records += [
                    {"data": name[0], "backbone": name[1], "method": method, "settings tried": tried,
                     "validation": validation, "scored": scored}
                    for tried, validation, scored in insights.expected_best(rows)
                ]  # fmt: skip
        return records

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

    def _by_label(self, figure: Figure) -> Records:
        names = dict.fromkeys(line["configuration"].text for line in figure.table.rows)
        return [one for name in names if (row := self.found.row(name)) for one in insights.label_records(row)]

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


def _cells(truth: Any, chosen: Any, names: Sequence[str]) -> Records:
    """Returns the cells of a table of confusion; of a large one those that hold texts."""
    return [
        {"true": one, "predicted": other, "texts": int(((truth == i) & (chosen == j)).sum()),
         "share": float(((truth == i) & (chosen == j)).sum() / max((truth == i).sum(), 1))}
        for i, one in enumerate(names)
        for j, other in enumerate(names)
        if len(names) <= 12 or ((truth == i) & (chosen == j)).any()
    ]  # fmt: skip


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
