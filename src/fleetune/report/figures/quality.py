"""Quality of each configuration: bars with every seed, and quality against what it costs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from fleetune.compare.row import Row
from fleetune.compare.summary import Comparison
from fleetune.metrics import evaluate, majority_share
from fleetune.report import words
from fleetune.report.figure import ACCENT, MUTED, WARNING, Figure, domain, listed, score_ceiling

if TYPE_CHECKING:
    import altair as alt

    from fleetune.report.figure import Picture

STANDINGS = ["tied with the best", "below the best", "degenerate"]
STANDING_COLOURS = [ACCENT, MUTED, WARNING]
WITH_BASELINE = ("accuracy", "f1", "precision", "recall")
ROW_STEP = 46
LABEL_HEIGHT, LETTER_WIDTH = 0.045, 0.022  # shares of the drawing


def standing(row: Row) -> str:
    """Returns where a row stands: tied with the best, below it, or degenerate."""
    if row.degenerate:
        return "degenerate"
    return "tied with the best" if row.tied_with_best else "below the best"


def majority_score(rows: Sequence[Row], metric: str, split: str) -> float | None:
    """Returns the metric of always predicting the most frequent class, or whole set of labels (exact match alone).

    None where the metric of a constant prediction says little.
    """
    for row in rows:
        for trial in row.configuration.done:
            if not len(trial.predictions.get(split, ((), ()))[0]):
                continue
            labels, logits = trial.predictions[split]
            if trial.multi_label:
                return majority_share(labels) if metric == "exact_match" else None
            most = np.bincount(labels, minlength=logits.shape[1]).argmax()
            constant = np.tile(np.eye(logits.shape[1])[most], (len(labels), 1))
            return evaluate(labels, constant).get(metric) if metric.startswith(WITH_BASELINE) else None
    return None


def metric_bars(comparison: Comparison, rows: Sequence[Row], key: str) -> Figure:
    """Returns bars of the mean over seeds of rows on the same data, each seed a point, the interval a line."""
    metric = rows[0].metric
    title = words.metric_title(metric)
    scored = [row for row in rows if math.isfinite(row.mean)]
    baseline = majority_score(scored, metric, comparison.split)
    records = [
        {
            "configuration": row.name,
            "seed": seed,
            "score": score,
            "mean": row.mean,
            "low": row.interval[0] if row.interval else math.nan,
            "high": row.interval[1] if row.interval else math.nan,
            "standing": standing(row),
        }
        for row in scored
        for seed, score in row.scores.items()
    ]
    if baseline is not None:
        records = [record | {"majority": baseline} for record in records]
    caption = f"Bars are means over seeds on the {words.SPLIT_TITLES[comparison.split]} texts, points single seeds, "
    caption += "lines the 95 % t-interval of the mean."
    if baseline is not None:
        caption += f" The dashed line is what always giving the most frequent answer scores: {baseline:.3f}."
    return Figure(
        key=key,
        title=f"{title[:1].upper()}{title[1:]} by configuration",
        caption=caption,
        alternative=f"Bars of {title}: {listed([(row.name, words.score(row.mean)) for row in scored])}.",
        table=pd.DataFrame.from_records(records),
        draw=lambda table: _draw_bars(table, title, baseline),
    )


def seconds_bars(rows: Sequence[Row], key: str) -> Figure:
    """Returns bars of the mean training time over seeds, each seed as a point."""
    timed = [row for row in rows if row.seconds is not None]
    records = [
        {
            "configuration": row.name,
            "seed": trial.seed,
            "seconds": float(trial.seconds),
            "mean": row.seconds,
        }
        for row in timed
        for trial in row.configuration.done
        if trial.seconds is not None
    ]
    return Figure(
        key=key,
        title="Time by configuration",
        caption="Training and evaluation. Trials that train together each have their share of the fleet's time. "
        "Bars are means over seeds, points single seeds.",
        alternative=f"Bars of seconds: {listed([(row.name, words.duration(row.seconds)) for row in timed])}.",
        table=pd.DataFrame.from_records(records),
        draw=_draw_seconds,
    )


def quality_against_parameters(rows: Sequence[Row], key: str) -> Figure:
    """Returns the mean score of rows on the same data over the number of trained parameters, a logarithmic axis."""
    metric = rows[0].metric
    title = words.metric_title(metric)
    scored = [row for row in rows if math.isfinite(row.mean) and row.trainable]
    table = pd.DataFrame.from_records(
        [
            {
                "configuration": row.name,
                "trainable": row.trainable,
                "mean": row.mean,
                "low": row.interval[0] if row.interval else math.nan,
                "high": row.interval[1] if row.interval else math.nan,
                "lowest": min(row.scores.values()),
                "highest": max(row.scores.values()),
                "standing": standing(row),
            }
            for row in scored
        ]
    )
    return Figure(
        key=key,
        title=f"{title[:1].upper()}{title[1:]} against trained parameters",
        caption="Up and to the left is better: more quality from fewer trained parameters, head included. "
        "A line runs from the lowest to the highest seed.",
        alternative="Points of score and trained parameters: "
        + listed([(row.name, f"{words.score(row.mean)} with {words.compact(row.trainable)}") for row in scored])
        + ".",
        table=table,
        draw=lambda numbers: _draw_cost(numbers, metric),
    )


def _colour(table: pd.DataFrame) -> alt.Color:
    import altair as alt

    present = [name for name in STANDINGS if name in set(table["standing"])]
    colours = [STANDING_COLOURS[STANDINGS.index(name)] for name in present]
    legend = alt.Legend(symbolOpacity=1) if len(present) > 1 else None
    return alt.Color("standing:N", title=None, scale=alt.Scale(domain=present, range=colours), legend=legend)


def _draw_bars(table: pd.DataFrame, title: str, baseline: float | None) -> Picture:
    import altair as alt

    names = list(dict.fromkeys(table["configuration"]))
    y = alt.Y("configuration:N", sort=names, title=None, axis=None)
    ends = [*table["score"], *table["high"].dropna(), *([] if baseline is None else [baseline])]
    x_scale = alt.Scale(domain=[min(0.0, *ends), max(0.0, *ends) or 1.0])
    means = table.drop_duplicates("configuration")
    base = alt.Chart(means).encode(y=y)
    tooltip = [
        alt.Tooltip("configuration:N"),
        alt.Tooltip("mean:Q", format=".3f"),
        alt.Tooltip("low:Q", format=".3f", title="interval from"),
        alt.Tooltip("high:Q", format=".3f", title="to"),
    ]
    bars = base.mark_bar(height=12, cornerRadiusEnd=2, opacity=0.55, yOffset=8).encode(
        x=alt.X("mean:Q", title=title, scale=x_scale, axis=alt.Axis(tickCount=6)), color=_colour(table), tooltip=tooltip
    )
    lines = base.mark_rule(yOffset=8, strokeWidth=1.5, color="currentColor", opacity=0.75).encode(
        x="low:Q", x2="high:Q"
    )
    seeds = (
        alt.Chart(table)
        .mark_point(filled=True, size=42, yOffset=8, opacity=1, stroke="white", strokeWidth=0.8)
        .encode(
            y=y,
            x="score:Q",
            color=_colour(table),
            tooltip=["configuration:N", "seed:O", alt.Tooltip("score:Q", format=".3f")],
        )
    )
    labels = base.mark_text(x=0, limit=520, align="left", baseline="bottom", dy=-2).encode(
        text="configuration:N", x=alt.value(0)
    )
    layers: list[alt.Chart] = [bars, lines, seeds, labels]
    if baseline is not None:
        rule = alt.Chart(pd.DataFrame({"majority": [baseline]})).mark_rule(
            strokeDash=[4, 4], color="currentColor", opacity=0.6
        )
        layers.insert(0, rule.encode(x="majority:Q"))
    return alt.layer(*layers).properties(height=ROW_STEP * len(names))


def _sides(table: pd.DataFrame, ends: list[float]) -> list[str]:
    """Returns on which side of its point each name stands; nowhere if it would be written over a better one's."""
    wide = math.log(float(table["trainable"].max()) / float(table["trainable"].min())) + 2 * math.log(1.6)
    low, high = domain(ends)
    across = (np.log(table["trainable"]) - math.log(float(table["trainable"].min()) / 1.6)) / wide
    taken: list[tuple[float, float, float]] = []
    sides = []
    for name, x, y in zip(table["configuration"], across, table["mean"] / (high - low), strict=True):
        width = LETTER_WIDTH * (len(name) + 2)
        spans = {"right": (x, x + width), "left": (x - width, x)}
        order = ("left", "right") if x > 0.5 else ("right", "left")
        free = [
            side
            for side in order
            if not any(
                abs(y - h) < LABEL_HEIGHT and spans[side][0] < end and start < spans[side][1] for start, end, h in taken
            )
        ]
        sides.append(free[0] if free else "")
        if free:
            taken.append((*spans[free[0]], y))
    return sides


def _draw_seconds(table: pd.DataFrame) -> Picture:
    import altair as alt

    names = list(dict.fromkeys(table["configuration"]))
    y = alt.Y("configuration:N", sort=names, title=None, axis=None)
    base = alt.Chart(table.drop_duplicates("configuration")).encode(y=y)
    bars = base.mark_bar(height=12, cornerRadiusEnd=2, opacity=0.55, yOffset=8, color=ACCENT).encode(
        x=alt.X("mean:Q", title="seconds", axis=alt.Axis(tickCount=6)),
        tooltip=["configuration:N", alt.Tooltip("mean:Q", format=".1f")],
    )
    seeds = (
        alt.Chart(table)
        .mark_point(filled=True, size=42, yOffset=8, opacity=1, color=ACCENT, stroke="white", strokeWidth=0.8)
        .encode(y=y, x="seconds:Q", tooltip=["configuration:N", "seed:O", alt.Tooltip("seconds:Q", format=".1f")])
    )
    labels = base.mark_text(x=0, limit=520, align="left", baseline="bottom", dy=-2)
    labels = labels.encode(text="configuration:N", x=alt.value(0))
    return alt.layer(bars, seeds, labels).properties(height=ROW_STEP * len(names))


def _draw_cost(table: pd.DataFrame, metric: str) -> Picture:
    import altair as alt

    ends = [*table["lowest"], *table["highest"]]
    low, high = float(table["trainable"].min()), float(table["trainable"].max())
    x = alt.X(
        "trainable:Q",
        title="trained parameters (logarithmic)",
        scale=alt.Scale(type="log", domain=[low / 1.6, high * 1.6], nice=False),
        axis=alt.Axis(format="~s", tickCount=5, labelOverlap="greedy", labelSeparation=10, grid=False),
    )
    y = alt.Y(
        "mean:Q",
        title=words.metric_title(metric),
        scale=alt.Scale(domain=domain(ends, ceiling=score_ceiling(metric)), zero=False, nice=False),
        axis=alt.Axis(tickCount=6),
    )
    base = alt.Chart(table)
    spans = base.mark_rule(strokeWidth=1.5, opacity=0.6).encode(
        x=x, y=alt.Y("lowest:Q"), y2="highest:Q", color=_colour(table)
    )
    points = base.mark_point(filled=True, size=90, opacity=1).encode(
        x=x,
        y=y,
        color=_colour(table),
        tooltip=[
            alt.Tooltip("configuration:N"),
            alt.Tooltip("trainable:Q", format=",", title="trained parameters"),
            alt.Tooltip("mean:Q", format=".3f"),
        ],
    )
    layers: list[alt.Chart] = [spans, points]
    table = table.assign(side=_sides(table, ends))
    right, left = (alt.Chart(table[table["side"] == side]) for side in ("right", "left"))
    layers.append(right.mark_text(align="left", dx=9, limit=190).encode(x=x, y=y, text="configuration:N"))
    layers.append(left.mark_text(align="right", dx=-9, limit=190).encode(x=x, y=y, text="configuration:N"))
    return alt.layer(*layers).properties(height=320)
