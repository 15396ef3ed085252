"""What a setting does: the score against each numeric setting of a method that the recipe tried several values of."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from fleetune.compare.configuration import ABSENT, all_settings
from fleetune.compare.row import Row
from fleetune.report import words
from fleetune.report.figure import ACCENT, SERIES, Figure, domain, legend_of, listed, score_ceiling
from fleetune.report.parts import Panels

if TYPE_CHECKING:
    from fleetune.report.figure import Picture

LOGARITHMIC_FROM = 4.0  # an axis whose highest value is so many times the lowest is drawn with equal ratios
SPLITS = ("validation", "test")
HEIGHT = 230
HOW_TO_READ = (
    "A point is a seed, a line joins the means over seeds. Validation chooses the setting; the test texts only say how "
    "the chosen one does."
)


def sweep_panels(rows: Sequence[Row], key: str) -> list[Panels]:
    """Returns for each method and each numeric setting it varies the score on validation and on test, side by side.

    Rows are those on one data set; a method's settings are its entry's in the recipe. Baselines have none.
    """
    entries: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        first = row.configuration.first
        if not row.is_baseline and row.configuration.done:
            entries.setdefault((first.backbone, first.entry or first.kind), []).append(row)
    several = len({backbone for backbone, _ in entries}) > 1
    named = [(f"{entry} · {backbone}" if several else entry, members) for (backbone, entry), members in entries.items()]
    found = []
    for number, (name, members) in enumerate(named, start=1):
        axes = numeric_axes(members)
        scores = scores_by_split(members) if axes else pd.DataFrame()
        found += [_panels(sweep_table(members, axis, scores), members[0].metric, axis, name,
                          words.key(key, str(number), name, axis)) for axis in axes]  # fmt: skip
    return [panels for panels in found if panels.figures]


def numeric_axes(rows: Sequence[Row]) -> list[str]:
    """Returns the settings of which the rows have at least two values, all of them numbers."""
    return [name for name, values in _varying(rows).items() if len(values) > 1 and all(map(_is_number, values))]


def scores_by_split(rows: Sequence[Row]) -> pd.DataFrame:
    """Returns one row a configuration, seed and split with its score, where it has one."""
    records = [
        {"configuration": row.name, "split": split, "seed": trial.seed}
        | {"score": trial.scores(split).get(row.metric, math.nan)}
        for row in rows
        for trial in row.configuration.done
        for split in SPLITS
        if len(trial.labels(split))
    ]
    table = pd.DataFrame.from_records(records, columns=["configuration", "split", "seed", "score"])
    return table[np.isfinite(table["score"].astype(float))]


def sweep_table(rows: Sequence[Row], axis: str, scores: pd.DataFrame) -> pd.DataFrame:
    """Returns `scores` of the rows that have the setting, with its value and what else varies in words."""
    others = [name for name in _varying(rows) if name != axis]
    records = []
    for row in rows:
        settings = all_settings(row.configuration.first)
        rest = ", ".join(f"{name} {words.setting(settings[name])}" for name in others if name in settings)
        if axis in settings:
            records.append({"configuration": row.name, "others": rest, axis: settings[axis]})
    return pd.DataFrame.from_records(records).merge(scores, on="configuration")


def _panels(table: pd.DataFrame, metric: str, axis: str, name: str, key: str) -> Panels:
    ends = domain([float(score) for score in table["score"]], ceiling=score_ceiling(metric))
    figures = []
    for split in SPLITS:
        part = table[table["split"] == split].sort_values(["others", axis])
        if len(part):
            figures.append(
                Figure(
                    key=f"{key}-{split}",
                    title=f"On {words.SPLIT_TITLES[split]}",
                    caption="",
                    alternative=f"{words.capitalised(words.metric_title(metric))} of {name} on {split} against {axis}, "
                    f"means over seeds: {_means(part, axis)}.",
                    table=part.drop(columns="split").reset_index(drop=True),
                    draw=functools.partial(_draw, axis=axis, metric=metric, ends=ends),
                    size="panel",
                )
            )
    return Panels(f"{name}: {words.metric_title(metric)} against {axis}", "", figures)


def _varying(rows: Sequence[Row]) -> dict[str, list[Any]]:
    """Returns the settings that differ between the rows, with their distinct values."""
    settings = [all_settings(row.configuration.first) for row in rows]
    names = dict.fromkeys(name for one in settings for name in one)
    values = {
        name: list(
            {json.dumps(v, default=str): v for one in settings if (v := one.get(name, ABSENT)) is not ABSENT}.values()
        )
        for name in names
    }
    return {name: distinct for name, distinct in values.items() if len(distinct) > 1}


def _means(table: pd.DataFrame, axis: str) -> str:
    means = table.groupby(["others", axis], sort=False)["score"].mean().reset_index().to_dict("records")
    return listed(
        [(f"{one['others']} {axis} {words.setting(one[axis])}".strip(), words.score(one["score"])) for one in means]
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _draw(table: pd.DataFrame, axis: str, metric: str, ends: list[float]) -> Picture:
    import altair as alt

    values = sorted({float(value) for value in table[axis]})
    is_log = values[0] > 0 and values[-1] / values[0] >= LOGARITHMIC_FROM
    x = alt.X(
        f"{axis}:Q",
        title=f"{axis} (logarithmic)" if is_log else axis,
        scale=alt.Scale(type="log" if is_log else "linear", domain=_widened(values, is_log), nice=False),
        axis=alt.Axis(values=values, format="~g", labelOverlap="greedy", grid=False),
    )
    y = alt.Y(
        "score:Q",
        title=words.metric_title(metric),
        scale=alt.Scale(domain=ends, zero=False, nice=False),
        axis=alt.Axis(tickCount=5),
    )
    names = list(dict.fromkeys(table["others"]))
    base = alt.Chart(table).encode(x=x)
    if 1 < len(names) <= len(SERIES):
        scale = alt.Scale(domain=names, range=SERIES[: len(names)])
        base = base.encode(
            color=alt.Color("others:N", title=None, sort=names, scale=scale, legend=legend_of(names, "bottom"))
        )
    else:
        base = base.encode(color=alt.value(ACCENT), detail="others:N")
    points = base.mark_point(filled=True, size=34, opacity=0.75).encode(
        y=y, tooltip=["configuration:N", f"{axis}:Q", "seed:O", alt.Tooltip("score:Q", format=".3f")]
    )
    line = base.mark_line(strokeWidth=1.8).encode(y=alt.Y("mean(score):Q"))
    return alt.layer(line, points).properties(height=HEIGHT)


def _widened(values: Sequence[float], is_log: bool) -> list[float]:
    low, high = values[0], values[-1]
    if is_log:
        return [low / 1.3, high * 1.3]
    air = (high - low) * 0.08
    return [low - air, high + air]
