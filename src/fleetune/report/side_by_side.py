"""Two runs on one page: what each says, where recipes and machines differ, and their scores where the texts are one.

No test is made between runs, so the page claims nothing of one against the other.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from fleetune.compare.held_out import HeldOutTexts
from fleetune.compare.row import Row
from fleetune.compare.summary import Comparison, compare
from fleetune.data.writing import write_text
from fleetune.metrics import MINIMISED
from fleetune.report import words
from fleetune.report.figure import SERIES, Figure, domain, listed, score_ceiling
from fleetune.report.html import Run, rendered
from fleetune.report.overview import Overview, overview
from fleetune.report.page import flat_facts
from fleetune.report.table import Column, TableView, table_view

if TYPE_CHECKING:
    from fleetune.report.figure import Picture

TEMPLATE = "side_by_side.html.j2"
ROW_STEP = 42


@dataclass(frozen=True)
class Side:
    """One run: its name on the page, its verdicts, and its configurations by data set."""

    name: str
    metric: str
    split: str
    verdicts: dict[str, dict[str, Any]]
    overviews: list[tuple[str, Overview]]
    command: str


@dataclass(frozen=True)
class SideBySide:
    """Everything the template needs.

    Attributes:
        title: Both names.
        sides: The two runs.
        notes: For each pair of data sets with equal labels, whether the texts are the same too.
        scores: Both runs' scores, a figure for each pair of data sets whose texts are the same.
        differences: Where the recipes differ, and where the machines do.
    """

    title: str
    sides: list[Side]
    notes: list[str]
    scores: list[Figure]
    differences: list[TableView]


def write_side_by_side(a: Run, b: Run, out: Path) -> Path:
    """Writes the page of two runs to the file `out` and returns it."""
    out.parent.mkdir(parents=True, exist_ok=True)
    write_text(out, rendered(TEMPLATE, build_side_by_side(a, b)))
    return out


def build_side_by_side(a: Run, b: Run) -> SideBySide:
    """Returns the page of two runs."""
    runs = (a, b)
    names = (a.name, b.name) if a.name != b.name else (f"{a.name} (first)", f"{b.name} (second)")
    comparisons = [compare(run.trials, cost=run.cost) for run in runs]
    notes, scores = _common_texts(runs, comparisons, names)
    recipes, machines = ([_recipe(run) for run in runs], [dict(flat_facts(run.environment)) for run in runs])
    return SideBySide(
        title=" and ".join(names),
        sides=[_side(run, comparison, name) for run, comparison, name in zip(runs, comparisons, names, strict=True)],
        notes=notes,
        scores=scores,
        differences=[
            _difference_table("recipes", "Where the recipes differ", recipes, names),
            _difference_table("machines", "Where the environments differ", machines, names),
        ],
    )


def differing(one: Mapping[str, str], other: Mapping[str, str]) -> list[tuple[str, str, str]]:
    """Returns each key whose values differ, with both values; a dash where there is none."""
    keys = dict.fromkeys([*one, *other])
    pairs = [(key, one.get(key, words.DASH), other.get(key, words.DASH)) for key in keys]
    return [(key, left, right) for key, left, right in pairs if left != right]


def flat_recipe(text: str) -> dict[str, str]:
    """Returns the settings of a recipe by their full name, such as `training.epochs` or `method lora.rank`.

    Of a list of tables each is called by its name or kind, and numbered where that is not one alone.
    """
    return dict(_settings(tomllib.loads(text), ""))


def _settings(table: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, str]]:
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from _settings(value, f"{prefix}{key}.")
        elif isinstance(value, list) and value and all(isinstance(one, Mapping) for one in value):
            names = [str(one.get("name", one.get("kind", ""))) for one in value]
            for index, one in enumerate(value):
                earlier = names[:index].count(names[index])
                number = f" #{earlier + 1}" if names.count(names[index]) > 1 else ""
                yield from _settings(one, f"{prefix}{key} {names[index]}{number}.")
        else:
            yield f"{prefix}{key}", words.setting(value)


def _recipe(run: Run) -> dict[str, str]:
    try:
        return flat_recipe(run.recipe_text)
    except tomllib.TOMLDecodeError:
        return {"recipe": run.recipe_text}


def _side(run: Run, comparison: Comparison, name: str) -> Side:
    overviews = [
        (data, overview(rows, comparison.recommended_on(data), rows[0].metric in MINIMISED))
        for data, rows in _by_data(comparison).items()
    ]
    return Side(
        name=name,
        metric=words.metric_title(comparison.metric) if comparison.has_one_metric else "each data set's own metric",
        split=words.SPLIT_TITLES.get(comparison.split, comparison.split),
        verdicts={data: verdict.to_json() for data, verdict in comparison.verdicts.items()},
        overviews=overviews,
        command=run.command,
    )


def _by_data(comparison: Comparison) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for row in comparison.ranked:
        found.setdefault(row.configuration.first.data, []).append(row)
    return found


def _difference_table(key: str, title: str, both: Sequence[Mapping[str, str]], names: Sequence[str]) -> TableView:
    found = differing(*both)
    frame = pd.DataFrame.from_records(found, columns=["what", *names])
    columns = {"what": Column(""), **{name: Column(name) for name in names}}
    return table_view(key, title, "" if found else "Nowhere.", frame, columns)


def _common_texts(
    runs: Sequence[Run], comparisons: Sequence[Comparison], names: Sequence[str]
) -> tuple[list[str], list[Figure]]:
    """Returns what can be said of texts that both runs are scored on, and a figure for each such data set."""
    notes: list[str] = []
    figures: list[Figure] = []
    splits = [comparison.split for comparison in comparisons]
    for one, rows in _by_data(comparisons[0]).items():
        for other, other_rows in _by_data(comparisons[1]).items():
            if splits[0] != splits[1] or not _same_labels(rows, other_rows, splits[0]):
                continue
            known = [_texts(run, data, splits[0]) for run, data in zip(runs, (one, other), strict=True)]
            data = one if one == other else f"{one} and {other}"
            title = words.SPLIT_TITLES.get(splits[0], splits[0])
            if None in known:
                notes.append(
                    f"The labels of the {title} texts of {data} are the same; whether the texts are is not kept."
                )
            elif known[0] != known[1]:
                notes.append(f"The labels of the {title} texts of {data} are the same, but the texts are not.")
            else:
                notes.append(f"Both runs are scored on the same {len(known[0] or []):,} {title} texts of {data}.")
                if rows[0].metric == other_rows[0].metric:
                    key = words.key("scores", str(len(figures) + 1))
                    figures.append(_scores((rows, other_rows), names, data, key))
    if not notes:
        notes.append("The runs are scored on different texts: their scores do not compare.")
    return notes, figures


def _same_labels(rows: Sequence[Row], others: Sequence[Row], split: str) -> bool:
    labels = [_labels(members, split) for members in (rows, others)]
    if labels[0] is None or labels[1] is None:
        return False
    return labels[0][0] == labels[1][0] and np.array_equal(labels[0][1], labels[1][1])


def _labels(rows: Sequence[Row], split: str) -> tuple[list[str], Any] | None:
    for row in rows:
        for trial in row.configuration.done:
            if split in trial.predictions:
                return trial.label_names, trial.labels(split)
    return None


def _texts(run: Run, data: str, split: str) -> list[str] | None:
    """Returns the texts that the run was scored on; None where it did not keep them."""
    kept: Mapping[str, Mapping[str, HeldOutTexts]] = getattr(run, "texts", {})
    found = kept.get(data, {}).get(split)
    return None if found is None else found.texts


def _scores(both: Sequence[Sequence[Row]], names: Sequence[str], data: str, key: str) -> Figure:
    records = [
        {"run": name, "configuration": f"{row.name} · {name}", "seeds": len(row.scores), "mean": row.mean}
        | dict(zip(("low", "high"), row.interval or (math.nan, math.nan), strict=True))
        for rows, name in zip(both, names, strict=True)
        for row in rows
        if math.isfinite(row.mean)
    ]
    metric = both[0][0].metric
    table = pd.DataFrame.from_records(records).sort_values("mean", ascending=metric in MINIMISED, ignore_index=True)
    title = words.metric_title(metric)
    pairs = [(str(one["configuration"]), words.score(one["mean"])) for one in table.to_dict("records")]
    return Figure(
        key=key,
        title=f"{words.capitalised(title)} of both runs on {data}",
        caption="Points are means over seeds, lines their 95 % intervals. The intervals are each configuration's own; "
        "no difference between the runs was tested.",
        alternative=f"Points of {title}: {listed(pairs)}.",
        table=table,
        draw=lambda numbers: _draw(numbers, metric, list(names)),
    )


def _draw(table: pd.DataFrame, metric: str, names: list[str]) -> Picture:
    import altair as alt

    ends = [*table["mean"], *table["low"].dropna(), *table["high"].dropna()]
    scale = alt.Scale(domain=domain(ends, ceiling=score_ceiling(metric)), zero=False, nice=False)
    base = alt.Chart(table).encode(
        y=alt.Y("configuration:N", sort=list(table["configuration"]), title=None, axis=None),
        color=alt.Color("run:N", title=None, sort=names, scale=alt.Scale(domain=names, range=SERIES[: len(names)])),
    )
    lines = base.mark_rule(strokeWidth=1.6, yOffset=7).encode(
        x=alt.X("low:Q", title=words.metric_title(metric), scale=scale, axis=alt.Axis(tickCount=6)), x2="high:Q"
    )
    points = base.mark_point(filled=True, size=70, opacity=1, yOffset=7).encode(
        x=alt.X("mean:Q", scale=scale),
        tooltip=["configuration:N", "seeds:O", alt.Tooltip("mean:Q", format=".3f"), alt.Tooltip("low:Q", format=".3f"),
                 alt.Tooltip("high:Q", format=".3f")],
    )  # fmt: skip
    labels = alt.Chart(table).mark_text(align="left", baseline="bottom", dy=0, limit=520)
    labels = labels.encode(
        y=alt.Y("configuration:N", sort=list(table["configuration"]), axis=None), text="configuration:N", x=alt.value(0)
    )
    return alt.layer(lines, points, labels).properties(height=ROW_STEP * len(table))
