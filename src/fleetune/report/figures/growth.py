"""What more would bring: the expected best score by settings tried, and the score by training texts."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import pandas as pd

from fleetune.report import words
from fleetune.report.figure import SERIES, Figure, domain, legend_of, listed, score_ceiling

if TYPE_CHECKING:
    from fleetune.report.figure import Picture

HEIGHT = 280


def expected_best_figure(table: pd.DataFrame, metric: str, key: str) -> Figure | None:
    """Returns the expected score of the setting that validation chooses, by how many settings are tried.

    Args:
        table: One row a method and number of settings, with the columns `method`, `settings_tried` and `scored` (what
            the chosen one is expected to score).
        metric: Name of the metric.
        key: Name of the figure.
    """
    if not len(table):
        return None
    title = words.metric_title(metric)
    last = table.sort_values("settings_tried").groupby("method", sort=False).last()
    pairs = [
        (str(name), f"{words.score(row['scored'])} after {row['settings_tried']:.0f}") for name, row in last.iterrows()
    ]
    return Figure(
        key=key,
        title=f"Expected {title} by settings tried",
        caption="What the setting chosen on validation is expected to score if only so many of the method's settings, "
        "drawn by chance, had been tried. Methods are fairly compared at the same number.",
        alternative=f"Lines of expected {title} by number of settings tried: {listed(pairs)}.",
        table=table,
        draw=functools.partial(
            _draw, x="settings_tried", y="scored", colour="method", titles=("settings tried", f"expected {title}"),
            metric=metric, tick_every=1,
        ),
    )  # fmt: skip


def data_curve_figure(table: pd.DataFrame, metric: str, key: str) -> Figure | None:
    """Returns the score by number of training texts, a line for each configuration with its interval as a band.

    Args:
        table: One row a configuration and size, with the columns `name`, `share`, `texts`, `mean`, `low` and
            `high`; the last two are missing where there is no interval, `texts` where an older run does not know it.
        metric: Name of the metric.
        key: Name of the figure.
    """
    if not len(table):
        return None
    title = words.metric_title(metric)
    x = "texts" if table["texts"].notna().all() else "share"
    unit = "training texts" if x == "texts" else "share of the training texts"
    names = list(dict.fromkeys(table["name"]))[: len(SERIES)]
    shown = table[table["name"].isin(names)].astype({x: float, "low": float, "high": float}).reset_index(drop=True)
    last = shown.sort_values(x).groupby("name", sort=False).last()
    pairs = [(str(name), f"{words.score(row['mean'])} at {row[x]:,g}") for name, row in last.iterrows()]
    of_all = table["name"].nunique()
    return Figure(
        key=key,
        title=f"{words.capitalised(title)} by {unit}",
        caption="A line is the mean over seeds, its band the 95 % interval over seeds and texts."
        + (f" The first {len(names)} of {of_all} configurations." if of_all > len(names) else ""),
        alternative=f"Lines of {title} by {unit}: {listed(pairs)}.",
        table=shown,
        draw=functools.partial(
            _draw, x=x, y="mean", colour="name", titles=(f"{unit} (logarithmic)", title),
            metric=metric,
        ),
    )  # fmt: skip


def _draw(
    table: pd.DataFrame,
    x: str,
    y: str,
    colour: str,
    titles: tuple[str, str],
    metric: str,
    tick_every: int | None = None,
) -> Picture:
    import altair as alt

    banded = {"low", "high"} <= set(table.columns)
    ends = [*table[y], *([*table["low"], *table["high"]] if banded else [])]
    names = list(dict.fromkeys(table[colour]))
    values = sorted({float(value) for value in table[x]})
    if tick_every is None:
        scale = alt.Scale(type="log", domain=[values[0] / 1.1, values[-1] * 1.1], nice=False)
        axis = alt.Axis(values=values, format=",~r", grid=False, labelOverlap="greedy")
    else:
        scale = alt.Scale(zero=False, nice=False)
        axis = alt.Axis(values=[value for value in values if value % tick_every == 0], format="d", grid=False)
    base = alt.Chart(table).encode(
        x=alt.X(f"{x}:Q", title=titles[0], scale=scale, axis=axis),
        color=alt.Color(
            f"{colour}:N",
            title=None,
            sort=names,
            scale=alt.Scale(domain=names, range=[SERIES[i % len(SERIES)] for i in range(len(names))]),
            legend=legend_of(names),
        ),
    )
    height = alt.Scale(domain=domain(ends, ceiling=score_ceiling(metric)), zero=False, nice=False)
    line = base.mark_line(strokeWidth=1.8, point={"size": 36}).encode(
        y=alt.Y(f"{y}:Q", title=titles[1], scale=height),
        tooltip=[f"{colour}:N", alt.Tooltip(f"{x}:Q", format=",~r"), alt.Tooltip(f"{y}:Q", format=".3f")],
    )
    if not banded:
        return alt.layer(line).properties(height=HEIGHT)
    band = base.mark_area(opacity=0.13).encode(y=alt.Y("low:Q", scale=height), y2="high:Q")
    return alt.layer(band, line).properties(height=HEIGHT)
