"""How trials learned: loss and metric by step, each line a mean over seeds with the seeds' range as a band."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from fleetune.compare.configuration import Configuration, all_settings, shared_settings
from fleetune.compare.result import TrialResult
from fleetune.compare.row import Row
from fleetune.report import words
from fleetune.report.figure import ACCENT, MUTED, SERIES, Figure, domain, legend_of, listed, score_ceiling

if TYPE_CHECKING:
    from fleetune.report.figure import Picture

MAX_POINTS = 60
MAX_PANELS = 24
PANEL_HEIGHT = 170
LOSSES = ["training", "validation"]
COLUMNS = ["seeds", "mean", "lowest", "highest"]
BAND = "A line is the mean over seeds, its band runs from the lowest to the highest seed."


def thinned(losses: Sequence[tuple[int, float]], points: int = MAX_POINTS) -> list[tuple[float, float]]:
    """Returns at most `points` pairs of (step, loss), each the mean over neighbouring steps."""
    if not losses:
        return []
    groups = np.array_split(np.asarray(losses, dtype=np.float64), min(points, len(losses)))
    return [(float(group[:, 0].mean()), float(group[:, 1].mean())) for group in groups]


def banded(points: Iterable[tuple[float, float]], most: int = MAX_POINTS) -> pd.DataFrame:
    """Returns by step the number of seeds, their mean, lowest and highest; of many steps `most`, the last among them.

    Args:
        points: A step and a value for each seed that has one there; what is no number is left out.
        most: Most rows.
    """
    by_step: dict[float, list[float]] = {}
    for step, value in points:
        if _is_number(value):
            by_step.setdefault(float(step), []).append(float(value))
    steps = sorted(by_step)
    if len(steps) > most:
        steps = [steps[index] for index in np.linspace(0, len(steps) - 1, most).round().astype(int)]
    records = [(step, len(v := by_step[step]), sum(v) / len(v), min(v), max(v)) for step in steps]
    return pd.DataFrame.from_records(records, columns=["step", *COLUMNS])


def loss_panels(configurations: Sequence[Configuration], key: str, most: int = MAX_PANELS) -> list[Figure]:
    """Returns one panel for each of the first `most` configurations: training and validation loss, on one scale."""
    tables = {configuration.name: _loss_table(configuration) for configuration in configurations[:most]}
    tables = {name: table for name, table in tables.items() if len(table)}
    if not tables:
        return []
    everything = pd.concat(tables.values())
    ends = domain([float(value) for value in everything["highest"]], floor=0.0)
    steps = max((len(trial.losses) for configuration in configurations for trial in configuration.trials), default=0)
    mean_of = math.ceil(steps / MAX_POINTS)
    caption = f"Training points are means over {mean_of} steps." if mean_of > 1 else ""
    if any(_is_weighted(configuration.first.training) for configuration in configurations):
        caption += " Training loss is what was minimised, weights and focus included; validation's is cross entropy."
    return [
        Figure(
            key=f"{key}-{index}",
            title=name,
            caption=caption,
            alternative=f"Loss by step of {name}: {_loss_words(table)}.",
            table=table,
            draw=functools.partial(_draw_loss, ends=ends),
            size="panel",
        )
        for index, (name, table) in enumerate(tables.items(), start=1)
    ]


def learning_curves(rows: Sequence[Row], metric: str, key: str) -> list[Figure]:
    """Returns a metric on validation by epoch, a line for each configuration; one figure, or one for each method.

    Up to ten lines are told apart by colour. Where there are more, each kind of method has a panel of its own with
    its ten best, all on one scale. The list is empty where nothing was evaluated.
    """
    configurations = [row.configuration for row in rows]
    axis = "epoch" if _have_epochs(configurations) else "step"
    tables = {one.name: _metric_table(one, metric, axis) for one in configurations}
    kept = [one for one in configurations if len(tables[one.name])]
    if not kept:
        return []
    everything = pd.concat([tables[one.name] for one in kept])
    ends = domain([*everything["lowest"], *everything["highest"]], ceiling=score_ceiling(metric))
    kinds = list(dict.fromkeys(one.first.kind for one in kept)) if len(kept) > len(SERIES) else [""]
    figures = []
    for kind in kinds:
        members = [one for one in kept if kind in ("", one.first.kind)]
        shown = members[: len(SERIES)]
        table = pd.concat([tables[one.name] for one in shown], ignore_index=True)
        table.insert(1, "settings", table["configuration"].map(_own_settings(shown)))
        figures.append(_curve_figure(table, shown, len(members), (metric, axis, kind, key), ends))
    return figures


def _curve_figure(
    table: pd.DataFrame,
    shown: Sequence[Configuration],
    of_all: int,
    named: tuple[str, str, str, str],
    ends: list[float],
) -> Figure:
    metric, axis, kind, key = named
    title = words.metric_title(metric)
    last = table.groupby("configuration", sort=False)["mean"].last()
    caption = BAND + (f" The {len(shown)} best of {of_all}." if of_all > len(shown) else "")
    if any(trial.stopped_early for one in shown for trial in one.trials):
        caption += " Where a seed stopped early, the line goes on with the others."
    return Figure(
        key=words.key(key, kind) if kind else key,
        title=kind or f"{words.capitalised(title)} on validation by {axis}",
        caption=caption,
        alternative=f"Lines of {title} on validation by {axis}; at the end "
        + listed([(str(name), words.score(float(value))) for name, value in last.items()])
        + ".",
        table=table,
        draw=functools.partial(_draw_metric, metric=metric, axis=axis, ends=ends, narrow=bool(kind)),
        size="panel" if kind else "wide",
    )


def _loss_table(configuration: Configuration) -> pd.DataFrame:
    tables = [
        banded([pair for trial in configuration.trials for pair in losses(trial)]).assign(split=split)
        for split, losses in (("training", lambda trial: thinned(trial.losses)), ("validation", _validation_losses))
    ]
    return pd.concat([table for table in tables if len(table)] or tables[:1])[["split", "step", *COLUMNS]]


def _validation_losses(trial: TrialResult) -> list[tuple[float, float]]:
    return [(float(one["step"]), _score(one["metrics"], "loss")) for one in trial.history]


def _metric_table(configuration: Configuration, metric: str, axis: str) -> pd.DataFrame:
    trials = [trial for trial in configuration.trials if trial.status != "failed"]
    points = [(one[axis], _score(one["metrics"], metric)) for trial in trials for one in trial.history]
    table = banded(points).rename(columns={"step": axis})
    return table.assign(configuration=configuration.name)[["configuration", axis, *COLUMNS]]


def _score(metrics: dict[str, Any], metric: str) -> float:
    """Returns a metric of an evaluation; older runs have the cross entropy as `log_loss` alone."""
    value = metrics.get(metric, metrics.get("log_loss") if metric == "loss" else None)
    return float(value) if value is not None else math.nan


def _have_epochs(configurations: Sequence[Configuration]) -> bool:
    return all(
        _is_number(one.get("epoch"))
        for configuration in configurations
        for trial in configuration.trials
        for one in trial.history
    )


def _own_settings(configurations: Sequence[Configuration]) -> dict[str, str]:
    """Returns by configuration the settings that not all of them share, in words."""
    shared = shared_settings([one.first for one in configurations])
    return {
        one.name: ", ".join(
            f"{name} {words.setting(value)}"
            for name, value in all_settings(one.first).items()
            if name not in shared and value is not None
        )
        for one in configurations
    }


def _is_weighted(training: dict[str, Any]) -> bool:
    plain = {"loss": "cross_entropy", "class_weights": "none"}
    return any(training.get(key, value) != value for key, value in plain.items())


def _is_number(value: Any) -> bool:
    return value is not None and math.isfinite(value)


def _loss_words(table: pd.DataFrame) -> str:
    parts = []
    for split, part in table.groupby("split", sort=False):
        parts.append((str(split), f"from {part['mean'].iloc[0]:.3f} to {part['mean'].iloc[-1]:.3f}"))
    return listed(parts)


def _draw_loss(table: pd.DataFrame, ends: list[float]) -> Picture:
    import altair as alt

    base = alt.Chart(table).encode(
        x=alt.X("step:Q", title="step", axis=alt.Axis(tickCount=4, grid=False)),
        color=alt.Color("split:N", title=None, scale=alt.Scale(domain=LOSSES, range=[MUTED, ACCENT]), legend=None),
    )
    y = alt.Y("mean:Q", title="loss", scale=alt.Scale(domain=ends, nice=False), axis=alt.Axis(tickCount=4))
    tooltip = [
        alt.Tooltip("split:N"),
        alt.Tooltip("step:Q", format=".0f"),
        alt.Tooltip("mean:Q", format=".4f", title="loss"),
        alt.Tooltip("seeds:O"),
    ]
    band = base.mark_area(opacity=0.22).encode(y=alt.Y("lowest:Q"), y2="highest:Q")
    line = base.encode(y=y, tooltip=tooltip)
    training = line.transform_filter("datum.split === 'training'").mark_line(strokeWidth=1.3, opacity=0.85)
    validation = line.transform_filter("datum.split === 'validation'").mark_line(strokeWidth=1.8, point={"size": 28})
    return alt.layer(band, training, validation).properties(height=PANEL_HEIGHT)


def _draw_metric(table: pd.DataFrame, metric: str, axis: str, ends: list[float], narrow: bool) -> Picture:
    import altair as alt

    colour = "settings" if narrow and table["settings"].all() and _tells_apart(table) else "configuration"
    names = list(dict.fromkeys(table[colour]))
    legend = legend_of(names, "bottom" if narrow else "top")
    base = alt.Chart(table).encode(
        x=alt.X(
            f"{axis}:Q", title=axis, scale=alt.Scale(zero=False, nice=False), axis=alt.Axis(tickCount=6, grid=False)
        ),
        color=alt.Color(
            f"{colour}:N",
            title=None,
            sort=names,
            scale=alt.Scale(domain=names, range=[SERIES[i % len(SERIES)] for i in range(len(names))]),
            legend=legend,
        ),
    )
    scale = alt.Scale(domain=ends, zero=False, nice=False)
    band = base.mark_area(opacity=0.13).encode(y=alt.Y("lowest:Q", scale=scale), y2="highest:Q")
    line = base.mark_line(strokeWidth=1.8, point={"size": 30}).encode(
        y=alt.Y("mean:Q", title=words.metric_title(metric), scale=scale),
        tooltip=[
            "configuration:N",
            alt.Tooltip(f"{axis}:Q", format="~g"),
            alt.Tooltip("mean:Q", format=".4f"),
            alt.Tooltip("lowest:Q", format=".4f"),
            alt.Tooltip("highest:Q", format=".4f"),
            "seeds:O",
        ],
    )
    return alt.layer(band, line).properties(height=200 if narrow else 300)


def _tells_apart(table: pd.DataFrame) -> bool:
    return bool(table["settings"].nunique() == table["configuration"].nunique())
