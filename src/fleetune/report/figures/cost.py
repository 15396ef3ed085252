"""Quality against what it costs, with the front of configurations that no other beats on both."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from fleetune.compare.row import Row
from fleetune.metrics import MINIMISED
from fleetune.report import words
from fleetune.report.figure import Figure, domain, listed, score_ceiling
from fleetune.report.figures.quality import standing, standing_colour

if TYPE_CHECKING:
    import altair as alt

    from fleetune.report.figure import Picture

AIR, LEAST_AIR = 0.12, 1.15  # how far the axis goes on beyond the cheapest and the dearest
NAME_HEIGHT, POINT_HEIGHT, RAISED, LETTER_WIDTH = 0.045, 0.033, 0.06, 0.011  # shares of a drawing of 720 by 340 pixels
NARROW = 480


@dataclass(frozen=True)
class CostAxis:
    """What quality is held against: its name in the table, its title, a row's value, and how that is written."""

    name: str
    title: str
    value: Callable[[Row], float | None]
    write: Callable[[float | None], str]
    label_format: str = "~s"


TRAINABLE = CostAxis("trainable", "trained parameters", lambda row: row.trainable, words.compact)
SECONDS = CostAxis("seconds", "seconds of training and evaluation", lambda row: row.seconds, words.duration, "~g")


def quality_against_cost(rows: Sequence[Row], cost: CostAxis, key: str) -> Figure | None:
    """Returns the mean score of rows on the same data over what they cost, a logarithmic axis, with the Pareto front.

    Rows of no cost, such as baselines that train nothing, cannot stand on the axis; None where none can. Degenerate
    rows are drawn but are never on the front.
    """
    scored = [row for row in rows if math.isfinite(row.mean) and cost.value(row)]
    if not scored:
        return None
    metric, title = rows[0].metric, words.metric_title(rows[0].metric)
    table = pd.DataFrame.from_records([_record(row, cost) for row in scored])
    table["on_front"] = pareto_front(
        table[cost.name].to_numpy(), table["mean"].to_numpy(), metric, (table["standing"] != "degenerate").to_numpy()
    )
    better = "Down and to the left is better" if metric in MINIMISED else "Up and to the left is better"
    front = table[table["on_front"]].sort_values(cost.name)
    cheapest = [(str(one["configuration"]), _words(one, cost)) for one in front.to_dict("records")]
    return Figure(
        key=key,
        title=f"{words.capitalised(title)} against {cost.title}",
        caption=f"{better}. Diamonds, joined by the dashed line, are the Pareto front: none has a better mean at "
        "the same or a lower cost. Which means differ is a matter of the tests. A stroke runs from the lowest to the "
        "highest seed.",
        alternative=f"Points of {title} and {cost.title}. On the Pareto front, cheapest first: {listed(cheapest)}.",
        table=table,
        draw=lambda numbers: _draw(numbers, metric, cost),
    )


def pareto_front(
    costs: np.ndarray[tuple[int], np.dtype[np.float64]],
    scores: np.ndarray[tuple[int], np.dtype[np.float64]],
    metric: str,
    allowed: np.ndarray[tuple[int], np.dtype[np.bool_]],
) -> list[bool]:
    """Returns which points `(points,)` no other allowed point beats in cost or score without being worse in the other.

    Args:
        costs: What each costs; less is better.
        scores: What each scores.
        metric: Name of the metric, which says whether more is better.
        allowed: Which may be on the front, or beat others.
    """
    losses = scores if metric in MINIMISED else -scores
    return [
        bool(allowed[i])
        and not any(
            allowed[j]
            and costs[j] <= costs[i]
            and losses[j] <= losses[i]
            and (costs[j], losses[j]) != (costs[i], losses[i])
            for j in range(len(costs))
        )
        for i in range(len(costs))
    ]


def _record(row: Row, cost: CostAxis) -> dict[str, object]:
    low, high = row.interval or (math.nan, math.nan)
    return {
        "configuration": row.name,
        cost.name: cost.value(row),
        "mean": row.mean,
        "low": low,
        "high": high,
        "lowest": min(row.scores.values()),
        "highest": max(row.scores.values()),
        "standing": standing(row),
    }


def _words(record: Mapping[Hashable, Any], cost: CostAxis) -> str:
    return f"{words.score(record['mean'])} at {cost.write(record[cost.name])}"


def _draw(table: pd.DataFrame, metric: str, cost: CostAxis) -> Picture:
    import altair as alt

    ends = [*table["lowest"], *table["highest"]]
    cheapest, dearest = float(table[cost.name].min()), float(table[cost.name].max())
    x = alt.X(
        f"{cost.name}:Q",
        title=f"{cost.title} (logarithmic)",
        scale=alt.Scale(type="log", domain=_widened(cheapest, dearest), nice=False),
        axis=alt.Axis(format=cost.label_format, tickCount=5, labelOverlap="greedy", labelSeparation=10, grid=False),
    )
    y = alt.Y(
        "mean:Q",
        title=words.metric_title(metric),
        scale=alt.Scale(domain=domain(ends, ceiling=score_ceiling(metric)), zero=False, nice=False),
        axis=alt.Axis(tickCount=6),
    )
    base = alt.Chart(table)
    front = (
        alt.Chart(table[table["on_front"]])
        .mark_line(interpolate="step-after", strokeDash=[5, 4], strokeWidth=1.5, color="currentColor", opacity=0.6)
        .encode(x=x, y=y, order=alt.Order(f"{cost.name}:Q"))
    )
    spans = base.mark_rule(strokeWidth=1.5, opacity=0.6).encode(
        x=x, y=alt.Y("lowest:Q"), y2="highest:Q", color=standing_colour(table)
    )
    points = base.mark_point(filled=True, size=90, opacity=1, strokeWidth=1.6).encode(
        x=x,
        y=y,
        color=standing_colour(table),
        shape=alt.Shape(
            "on_front:N",
            scale=alt.Scale(domain=[True, False], range=["diamond", "circle"]),
            legend=None,
        ),
        tooltip=[
            alt.Tooltip("configuration:N"),
            alt.Tooltip(f"{cost.name}:Q", format=",.6~r", title=cost.title),
            alt.Tooltip("mean:Q", format=".3f"),
            alt.Tooltip("on_front:N", title="on the front"),
        ],
    )
    return alt.layer(front, spans, points, *_labels(table, ends, x, y, cost)).properties(height=340)


def _labels(table: pd.DataFrame, ends: list[float], x: alt.X, y: alt.Y, cost: CostAxis) -> list[alt.Chart]:
    """Returns the names beside their points; on a narrow screen they would lie over one another and are left out."""
    import altair as alt

    sided = table.assign(side=_sides(table, ends, cost))
    shown = alt.ExprRef(f"width < {NARROW} ? 0 : 1")
    sides: list[tuple[str, Literal["left", "right"], int, int]] = [
        ("right", "left", 10, 0),
        ("left", "right", -10, 0),
        ("above", "left", 0, -20),
    ]
    return [
        alt.Chart(sided[sided["side"] == side])
        .mark_text(align=align, dx=across, dy=down, limit=300, opacity=shown)
        .encode(x=x, y=y, text="configuration:N")
        for side, align, across, down in sides
        if (sided["side"] == side).any()
    ]


def _sides(table: pd.DataFrame, ends: list[float], cost: CostAxis) -> list[str]:
    """Returns on which side of its point each name stands; nowhere if it would lie over a name or point before it.

    Those on the front come first.
    """
    costs = np.log(table[cost.name].to_numpy(dtype=float))
    start, end = (math.log(cost) for cost in _widened(math.exp(costs.min()), math.exp(costs.max())))
    low, high = domain(ends)
    across, up = (costs - start) / (end - start), table["mean"].to_numpy() / (high - low)
    taken: list[tuple[float, float, float, float]] = [
        (x - LETTER_WIDTH, x + LETTER_WIDTH, y, POINT_HEIGHT) for x, y in zip(across, up, strict=True)
    ]
    sides = [""] * len(table)
    for index in sorted(range(len(table)), key=lambda index: not table["on_front"].iloc[index]):
        x, y = across[index], up[index]
        width = LETTER_WIDTH * (len(str(table["configuration"].iloc[index])) + 1)
        gap = 1.2 * LETTER_WIDTH
        places = {
            "right": (x + gap, x + gap + width, y),
            "left": (x - gap - width, x - gap, y),
            "above": (x, x + width, y + RAISED),
        }
        # Up and to the left of the front nothing stands, and the line that joins it comes from below.
        order = ("left", "right") if x > 0.5 or table["on_front"].iloc[index] else ("right", "left")
        for side in (*order, "above"):
            if places[side][0] >= 0 and places[side][1] <= 1 and not _covers(places[side], taken):
                sides[index] = side
                taken.append((*places[side], NAME_HEIGHT))
                break
    return sides


def _widened(cheapest: float, dearest: float) -> list[float]:
    air = max(LEAST_AIR, (dearest / cheapest) ** AIR)
    return [cheapest / air, dearest * air]


def _covers(place: tuple[float, float, float], taken: Sequence[tuple[float, float, float, float]]) -> bool:
    start, end, height = place
    return any(abs(height - other) < apart and start < last and first < end for first, last, other, apart in taken)
