"""How trials learned: loss by step, and the metric on validation by step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from fleetune.compare.configuration import Configuration
from fleetune.compare.result import TrialResult
from fleetune.compare.row import Row
from fleetune.report import words
from fleetune.report.figure import ACCENT, MUTED, SERIES, Figure, domain, listed, score_ceiling

if TYPE_CHECKING:
    from fleetune.report.figure import Picture

MAX_POINTS = 60
PANEL_HEIGHT = 170
LOSSES = ["training", "validation"]


def thinned(losses: Sequence[tuple[int, float]], points: int = MAX_POINTS) -> list[tuple[float, float]]:
    """Returns at most `points` pairs of (step, loss), each the mean over neighbouring steps."""
    if not losses:
        return []
    groups = np.array_split(np.asarray(losses, dtype=np.float64), min(points, len(losses)))
    return [(float(group[:, 0].mean()), float(group[:, 1].mean())) for group in groups]


def loss_panels(configurations: Sequence[Configuration], key: str) -> list[Figure]:
    """Returns one panel a configuration: training and validation loss of every seed, on one common scale."""
    tables = {configuration.name: _loss_table(configuration) for configuration in configurations}
    tables = {name: table for name, table in tables.items() if len(table)}
    if not tables:
        return []
    everything = pd.concat(tables.values())["loss"]
    ends = domain([float(value) for value in everything], floor=0.0)
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
            draw=lambda numbers: _draw_loss(numbers, ends),
            size="panel",
        )
        for index, (name, table) in enumerate(tables.items(), start=1)
    ]


def metrics_by_step(rows: Sequence[Row]) -> list[Figure]:
    """Returns `metric_by_step` for each metric by which rows are scored."""
    metrics = list(dict.fromkeys(row.metric for row in rows))
    drawn = [
        metric_by_step(
            [row.configuration for row in rows if row.metric == metric],
            metric,
            "metric-by-step" if len(metrics) == 1 else words.key("metric-by-step", metric),
        )
        for metric in metrics
    ]
    return [figure for figure in drawn if figure is not None]


def metric_by_step(configurations: Sequence[Configuration], metric: str, key: str) -> Figure | None:
    """Returns the metric on validation by step, one line a trial; None where nothing was evaluated."""
    records = [
        {"configuration": configuration.name, "kind": trial.kind, "seed": trial.seed, "trial": trial.id}
        | {"step": evaluation["step"], "score": evaluation["metrics"][metric]}
        for configuration in configurations
        for trial in configuration.trials
        for evaluation in trial.history
        if _is_number(evaluation["metrics"].get(metric))
    ]
    if not records:
        return None
    table = pd.DataFrame.from_records(records)
    title = words.metric_title(metric)
    last = table.sort_values("step").groupby("configuration", sort=False)["score"].last()
    by_kind = len(last) > len(SERIES)
    return Figure(
        key=key,
        title=f"{title[:1].upper()}{title[1:]} on validation by step",
        caption="One line a trial; seeds of a configuration share a colour"
        + (", configurations of a method too." if by_kind else "."),
        alternative=f"Lines of {title} on validation; at the last step "
        + listed([(str(name), words.score(float(value))) for name, value in last.items()])
        + ".",
        table=table,
        draw=lambda numbers: _draw_metric(numbers, metric, "kind" if by_kind else "configuration"),
    )


def _loss_table(configuration: Configuration) -> pd.DataFrame:
    records = [
        {"seed": trial.seed, "split": split, "step": step, "loss": loss}
        for trial in configuration.trials
        for split, points in (("training", thinned(trial.losses)), ("validation", _validation_losses(trial)))
        for step, loss in points
        if math.isfinite(loss)
    ]
    return pd.DataFrame.from_records(records, columns=["seed", "split", "step", "loss"])


def _validation_losses(trial: TrialResult) -> list[tuple[float, float]]:
    pairs = [(one["step"], one["metrics"].get("loss", one["metrics"].get("log_loss"))) for one in trial.history]
    return [(float(step), float(loss)) for step, loss in pairs if _is_number(loss)]


def _is_weighted(training: dict[str, Any]) -> bool:
    plain = {"loss": "cross_entropy", "class_weights": "none"}
    return any(training.get(key, value) != value for key, value in plain.items())


def _is_number(value: Any) -> bool:
    return value is not None and math.isfinite(value)


def _loss_words(table: pd.DataFrame) -> str:
    parts = []
    for (split, seed), part in table.groupby(["split", "seed"], sort=False):
        ordered = part.sort_values("step")["loss"]
        parts.append((f"{split}, seed {seed}", f"from {ordered.iloc[0]:.3f} to {ordered.iloc[-1]:.3f}"))
    return listed(parts)


def _draw_loss(table: pd.DataFrame, ends: list[float]) -> Picture:
    import altair as alt

    base = alt.Chart(table).encode(
        x=alt.X("step:Q", title="step", axis=alt.Axis(tickCount=4, grid=False)),
        y=alt.Y("loss:Q", title="loss", scale=alt.Scale(domain=ends, nice=False), axis=alt.Axis(tickCount=4)),
        color=alt.Color("split:N", title=None, scale=alt.Scale(domain=LOSSES, range=[MUTED, ACCENT]), legend=None),
        detail="seed:N",
        tooltip=["split:N", "seed:O", alt.Tooltip("step:Q", format=".0f"), alt.Tooltip("loss:Q", format=".4f")],
    )
    training = base.transform_filter("datum.split === 'training'").mark_line(strokeWidth=1.3, opacity=0.85)
    validation = base.transform_filter("datum.split === 'validation'").mark_line(strokeWidth=1.8, point={"size": 28})
    return alt.layer(training, validation).properties(height=PANEL_HEIGHT)


def _draw_metric(table: pd.DataFrame, metric: str, colour: str) -> Picture:
    import altair as alt

    names = list(dict.fromkeys(table[colour]))
    picture: Picture = (
        alt.Chart(table)
        .mark_line(strokeWidth=1.8, point={"size": 30})
        .encode(
            x=alt.X(
                "step:Q", title="step", scale=alt.Scale(zero=False, nice=False), axis=alt.Axis(tickCount=6, grid=False)
            ),
            y=alt.Y(
                "score:Q",
                title=words.metric_title(metric),
                scale=alt.Scale(
                    domain=domain(list(table["score"]), ceiling=score_ceiling(metric)), zero=False, nice=False
                ),
            ),
            color=alt.Color(
                f"{colour}:N",
                title=None,
                sort=names,
                scale=alt.Scale(domain=names, range=[SERIES[i % len(SERIES)] for i in range(len(names))]),
                legend=alt.Legend(columns=3, labelLimit=170),
            ),
            detail="trial:N",
            tooltip=["configuration:N", "seed:O", "step:Q", alt.Tooltip("score:Q", format=".4f")],
        )
        .properties(height=280)
    )
    return picture
