"""What the texts are like: labels by split, and lengths in tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pandas as pd

from fleetune.report import words
from fleetune.report.figure import ACCENT, SERIES, Figure, listed

if TYPE_CHECKING:
    from fleetune.report.figure import Picture

SPLITS = ("train", "validation", "test")


def class_counts(audit: Mapping[str, Any], key: str) -> Figure | None:
    """Returns the share of each label in each split; None where the audit has no counts."""
    counts: Mapping[str, Mapping[str, int]] = audit.get("class_counts") or {}
    sizes = {split: int(audit.get(split) or 0) for split in SPLITS}
    records = [
        {"label": label, "split": words.SPLIT_TITLES[split], "texts": int(number), "share": number / sizes[split]}
        for split in SPLITS
        if sizes[split]
        for label, number in counts.get(split, {}).items()
    ]
    if not records:
        return None
    training = sorted(counts.get("train", {}).items(), key=lambda item: -item[1])
    return Figure(
        key=key,
        title="Labels by split",
        caption="Share of a split's texts that carry the label; stratified splits have bars of the same length.",
        alternative=f"Bars of label shares. Training texts: {listed([(name, f'{n:,}') for name, n in training])}.",
        table=pd.DataFrame.from_records(records),
        draw=_draw_counts,
    )


def token_lengths(audit: Mapping[str, Any], key: str) -> Figure | None:
    """Returns the histogram of lengths in tokens before cutting; None where the audit has none."""
    histogram: Mapping[str, Any] = audit.get("token_lengths") or {}
    edges, counts = list(histogram.get("edges") or []), list(histogram.get("counts") or [])
    if not counts:
        return None
    limit = audit.get("max_tokens")
    table = pd.DataFrame({"from": edges[:-1], "to": edges[1:], "texts": counts})
    caption = "Length of each text in tokens, special tokens included, before cutting."
    if limit is not None:
        drawn = "The dashed line is" if limit <= edges[-1] else "None reaches"
        windowed = audit.get("windowed")
        read = f" {words.integer(windowed)} texts are read in several windows," if windowed else ""
        caption += f" {drawn} max_tokens = {limit};{read} {words.integer(audit.get('truncated'))} texts are cut."
    facts = [(name, str(histogram[name])) for name in ("median", "p95", "max") if name in histogram]
    return Figure(
        key=key,
        title="Length in tokens",
        caption=caption,
        alternative=f"Histogram of text lengths in tokens: {listed(facts)}.",
        table=table,
        draw=lambda numbers: _draw_lengths(numbers, limit),
    )


def _draw_counts(table: pd.DataFrame) -> Picture:
    import altair as alt

    labels = list(dict.fromkeys(table["label"]))
    splits = [title for title in words.SPLIT_TITLES.values() if title in set(table["split"])]
    picture: Picture = (
        alt.Chart(table)
        .mark_bar(cornerRadiusEnd=2)
        .encode(
            y=alt.Y("label:N", sort=labels, title=None, axis=alt.Axis(labelLimit=130)),
            yOffset=alt.YOffset("split:N", sort=splits),
            x=alt.X("share:Q", title="share of the split", axis=alt.Axis(format="~%", tickCount=6)),
            color=alt.Color(
                "split:N", sort=splits, title=None, scale=alt.Scale(domain=splits, range=SERIES[: len(splits)])
            ),
            tooltip=["label:N", "split:N", alt.Tooltip("texts:Q", format=","), alt.Tooltip("share:Q", format=".1%")],
        )
        .properties(height=14 * len(labels) * len(splits))
    )
    return picture


def _draw_lengths(table: pd.DataFrame, limit: int | None) -> Picture:
    import altair as alt

    bars = (
        alt.Chart(table)
        .mark_bar(color=ACCENT, opacity=0.75, binSpacing=1)
        .encode(
            x=alt.X("from:Q", bin="binned", title="tokens"),
            x2="to:Q",
            y=alt.Y("texts:Q", title="texts"),
            tooltip=["from:Q", "to:Q", alt.Tooltip("texts:Q", format=",")],
        )
    )
    layers = [bars]
    if limit is not None and limit <= table["to"].max():
        rule = alt.Chart(pd.DataFrame({"max_tokens": [limit]})).mark_rule(strokeDash=[4, 4], color="currentColor")
        layers.append(rule.encode(x="max_tokens:Q"))
    return alt.layer(*layers).properties(height=220)
