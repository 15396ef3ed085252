"""Whether a probability of 0.9 is right nine times in ten: reliability diagrams."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from fleetune.report import words
from fleetune.report.figure import ACCENT, MUTED, Figure, listed

if TYPE_CHECKING:
    from fleetune.report.figure import Picture

STAGES = ["as trained", "calibrated"]
MAX_PANELS = 6


def reliability_panels(table: pd.DataFrame, key: str, most: int = MAX_PANELS) -> list[Figure]:
    """Returns one reliability diagram for each of the first `most` configurations.

    Args:
        table: One row a bin, with the columns `configuration`, `stage` (`as trained` or `calibrated`),
            `confidence` (mean probability), `correct` (share that is right) and `count` (predictions in it).
        key: What the figures' names begin with.
        most: Most configurations drawn.

    Source: Guo et al. (2017), arXiv:1706.04599, figure 4, drawn as points whose area is the number of predictions.
    """
    filled = table[table["count"] > 0]
    names = list(dict.fromkeys(filled["configuration"]))[:most]
    return [
        _panel(filled[filled["configuration"] == name].reset_index(drop=True), str(name), f"{key}-{index}")
        for index, name in enumerate(names, start=1)
    ]


def _panel(table: pd.DataFrame, name: str, key: str) -> Figure:
    stage = str(table["stage"].iloc[-1])
    largest = table[table["stage"] == stage].sort_values("count", ascending=False)
    pairs = [
        (f"at confidence {words.score(one['confidence'])}", f"{words.score(one['correct'])} right")
        for one in largest.to_dict("records")
    ]
    return Figure(
        key=key,
        title=name,
        caption="",
        alternative=f"Reliability diagram of {name}, {stage}: {listed(pairs, 4)}.",
        table=table,
        draw=_draw,
        size="panel",
    )


def _draw(table: pd.DataFrame) -> Picture:
    import altair as alt

    stages = [stage for stage in STAGES if stage in set(table["stage"])]
    colours = [MUTED if stage == STAGES[0] else ACCENT for stage in stages]
    unit = alt.Scale(domain=[0, 1], nice=False)
    diagonal = (
        alt.Chart(pd.DataFrame({"confidence": [0.0, 1.0], "correct": [0.0, 1.0]}))
        .mark_line(strokeDash=[4, 4], strokeWidth=1, color="currentColor", opacity=0.5)
        .encode(x="confidence:Q", y="correct:Q")
    )
    base = alt.Chart(table).encode(
        x=alt.X("confidence:Q", title="confidence", scale=unit, axis=alt.Axis(tickCount=5)),
        y=alt.Y("correct:Q", title="share true", scale=unit, axis=alt.Axis(tickCount=5)),
        color=alt.Color("stage:N", title=None, scale=alt.Scale(domain=stages, range=colours), legend=None),
    )
    points = base.mark_point(filled=True, opacity=0.85).encode(
        size=alt.Size("count:Q", legend=None, scale=alt.Scale(range=[16, 260])),
        tooltip=[
            "stage:N",
            alt.Tooltip("confidence:Q", format=".3f"),
            alt.Tooltip("correct:Q", format=".3f", title="share right"),
            alt.Tooltip("count:Q", format=",", title="predictions"),
        ],
    )
    return alt.layer(diagonal, base.mark_line(strokeWidth=1.2, opacity=0.7), points).properties(height=230)
