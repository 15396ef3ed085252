"""Quality of each configuration: bars with every seed."""

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
from fleetune.report.figure import ACCENT, MUTED, SERIES, WARNING, Figure, listed

if TYPE_CHECKING:
    import altair as alt

    from fleetune.report.figure import Picture

STANDINGS = ["tied with the best", "better, but not chosen", "below the best", "not compared", "degenerate"]
STANDING_COLOURS = [ACCENT, SERIES[2], MUTED, SERIES[4], WARNING]
WITH_BASELINE = ("accuracy", "f1", "precision", "recall")
ROW_STEP = 46


def standing(row: Row) -> str:
    """Returns where a row stands against the best, in words: one of `STANDINGS`."""
    if row.degenerate:
        return "degenerate"
    match row.standing:
        case "chosen" | "tied":
            return "tied with the best"
        case "ahead":
            return "better, but not chosen"
        case "not comparable":
            return "not compared"
    return "below the best"


def majority_score(rows: Sequence[Row], metric: str, split: str) -> float | None:
    """Returns the metric of always predicting the most frequent class, or whole set of labels (exact match alone).

    None where the metric of a constant prediction says little.
    """
    for row in rows:
        for trial in row.configuration.done:
            if not len(trial.labels(split)):
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
    caption += "lines the 95 % interval over seeds and texts."
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


def standing_colour(table: pd.DataFrame) -> alt.Color:
    """Returns the colour of a mark by its row's standing, with a legend where there are several."""
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
        x=alt.X("mean:Q", title=title, scale=x_scale, axis=alt.Axis(tickCount=6)),
        color=standing_colour(table),
        tooltip=tooltip,
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
            color=standing_colour(table),
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
