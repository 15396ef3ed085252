"""Which labels are taken for which, and scores of each label."""

from __future__ import annotations

import functools
import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from fleetune.compare.result import TrialResult
from fleetune.compare.row import Row
from fleetune.metrics import confusion_matrix, per_label_metrics
from fleetune.report import words
from fleetune.report.figure import ACCENT, Figure, legend_of, listed

if TYPE_CHECKING:
    from fleetune.report.figure import Picture

MAX_WRITTEN_LABELS = 12
MAX_MULTI_LABELS = 24
MAX_CELLS = 4000
CELL = {"few": 40, "many": 12}


def confusion_panels(rows: Sequence[Row], split: str, key: str) -> list[Figure]:
    """Returns one panel a configuration: numbers of texts by true and predicted label, summed over its seeds.

    With many labels only the first of `rows` are drawn, so that the page stays small.
    """
    figures: list[Figure] = []
    cells = 0
    for index, row in enumerate(rows, start=1):
        trials = _scored(row, split)
        if not trials or trials[0].multi_label:
            continue
        if figures and cells > MAX_CELLS:
            break
        names = trials[0].label_names
        matrix = sum(confusion_matrix(t.labels(split), t.decisions(split), len(names)) for t in trials)
        table = _matrix_table(np.asarray(matrix), names)
        cells += len(table)
        figures.append(
            Figure(
                key=f"{key}-{index}",
                title=row.name,
                caption=f"{_seeds(len(trials))}; {int(table['texts'].sum()):,} predictions.",
                alternative=f"Confusion matrix of {row.name}. {_confusions(table)}",
                table=table,
                draw=functools.partial(_draw_matrix, noun="label", names=names),
                size="panel",
            )
        )
    return figures


def label_panels(row: Row, split: str, key: str) -> list[Figure]:
    """Returns one panel a label of a multi-label configuration: absent and present, summed over its seeds.

    Beyond 24 labels the most frequent are drawn.
    """
    trials = _scored(row, split)
    if not trials or not trials[0].multi_label:
        return []
    names = trials[0].label_names
    matrices = np.asarray(sum(confusion_matrix(t.labels(split), t.decisions(split)) for t in trials))
    order = np.argsort(-matrices[:, 1].sum(axis=1), kind="stable")[:MAX_MULTI_LABELS]
    figures = []
    for index in order:
        table = _matrix_table(matrices[index], ["absent", "present"])
        figures.append(
            Figure(
                key=f"{key}-{index + 1}",
                title=names[index],
                caption="",
                alternative=f"Confusion matrix of the label {names[index]}. {_confusions(table)}",
                table=table,
                draw=functools.partial(_draw_matrix, noun="value", names=["absent", "present"]),
                size="panel",
            )
        )
    return figures


def per_label_table(rows: Sequence[Row], split: str) -> pd.DataFrame:
    """Returns scores of each label and configuration: means over seeds, one row a label and configuration."""
    records: list[dict[str, Any]] = []
    for row in rows:
        trials = _scored(row, split)
        if not trials:
            continue
        names = trials[0].label_names
        tables = [
            per_label_metrics(t.labels(split), t.probabilities(split), names, t.thresholds(split)) for t in trials
        ]
        thresholds = _thresholds_by_label(trials)
        for name in names:
            scores = {key: [table[name][key] for table in tables] for key in tables[0][name]}
            records.append(
                {"label": name, "support": int(scores["support"][0]), "configuration": row.name, "seeds": len(trials)}
                | {key: statistics.fmean(scores[key]) for key in ("precision", "recall", "f1", "roc_auc")}
                | {"f1_lowest": min(scores["f1"]), "f1_highest": max(scores["f1"])}
                | thresholds.get(name, {})
            )
    return pd.DataFrame.from_records(records)


def _thresholds_by_label(trials: Sequence[TrialResult]) -> dict[str, dict[str, float]]:
    """Returns by label the mean, lowest and highest over seeds of the thresholds; nothing where single-label."""
    chosen = [trial.final_thresholds for trial in trials if trial.final_thresholds is not None]
    if not chosen:
        return {}
    by_label = zip(trials[0].label_names, np.stack(chosen, axis=1).tolist(), strict=True)
    return {
        name: {
            "threshold": statistics.fmean(values),
            "threshold_lowest": min(values),
            "threshold_highest": max(values),
        }
        for name, values in by_label
    }


def per_label_bars(rows: Sequence[Row], split: str, key: str) -> Figure | None:
    """Returns F1 of each label in the given configurations, best first; None where there is nothing to score."""
    table = per_label_table(rows, split)
    if not len(table):
        return None
    worst = table.sort_values("f1").drop_duplicates("label")
    return Figure(
        key=key,
        title="F1 by label",
        caption="A point is a configuration's mean over seeds on the label against the rest; the row's bar runs from "
        "the lowest to the highest of them.",
        alternative="Points of F1 by label. Lowest: "
        + listed([(str(one["label"]), words.score(one["f1"])) for one in worst.to_dict("records")], 5)
        + ".",
        table=table,
        draw=_draw_labels,
    )


def _scored(row: Row, split: str) -> list[TrialResult]:
    """Returns the finished trials whose logits on `split` are numbers."""
    having = [trial for trial in row.configuration.done if len(trial.labels(split))]
    return [trial for trial in having if np.isfinite(trial.predictions[split][1]).all()]


def _seeds(number: int) -> str:
    return "one seed" if number == 1 else f"sum over {number} seeds"


def _matrix_table(matrix: Any, names: Sequence[str]) -> pd.DataFrame:
    """Returns one row a cell; of a large matrix only the cells that hold texts."""
    totals = matrix.sum(axis=1)
    return pd.DataFrame.from_records(
        [
            {
                "true": true,
                "predicted": predicted,
                "texts": int(matrix[i, j]),
                "share": float(matrix[i, j] / totals[i]) if totals[i] else 0.0,
            }
            for i, true in enumerate(names)
            for j, predicted in enumerate(names)
            if matrix[i, j] or len(names) <= MAX_WRITTEN_LABELS
        ]
    )


def _confusions(table: pd.DataFrame) -> str:
    right = table[table["true"] == table["predicted"]]["texts"].sum()
    wrong = table[(table["true"] != table["predicted"]) & (table["texts"] > 0)].sort_values("texts", ascending=False)
    most = [(f"{one['true']} taken for {one['predicted']}", str(one["texts"])) for one in wrong.to_dict("records")]
    found = f"Most frequent confusions: {listed(most, 3)}." if most else "No confusions."
    return f"Right: {right:,} of {table['texts'].sum():,}. {found}"


def _draw_matrix(table: pd.DataFrame, noun: str, names: list[str]) -> Picture:
    import altair as alt

    few = len(names) <= MAX_WRITTEN_LABELS
    scale = alt.Scale(domain=names)
    axis = alt.Axis(labels=few, labelLimit=90, labelAngle=0 if len(names) <= 3 else -40)
    base = alt.Chart(table).encode(
        x=alt.X("predicted:N", scale=scale, title=f"predicted {noun}", axis=axis),
        y=alt.Y("true:N", scale=scale, title=f"true {noun}", axis=alt.Axis(labels=few, labelLimit=90)),
    )
    cells = base.mark_rect(color=ACCENT, stroke="currentColor", strokeOpacity=0.12 if few else 0.0).encode(
        opacity=alt.Opacity("share:Q", legend=None, scale=alt.Scale(domain=[0, 1], range=[0.0, 0.72])),
        tooltip=["true:N", "predicted:N", "texts:Q", alt.Tooltip("share:Q", format=".1%", title="of the true label")],
    )
    layers = [cells]
    if few:
        layers.append(base.mark_text(fontSize=12).encode(text=alt.Text("texts:Q", format=",")))
    return alt.layer(*layers).properties(height=len(names) * CELL["few" if few else "many"])


def _draw_labels(table: pd.DataFrame) -> Picture:
    import altair as alt

    names = list(dict.fromkeys(table["label"]))
    configurations = list(dict.fromkeys(table["configuration"]))
    y = alt.Y("label:N", sort=names, title=None, axis=alt.Axis(labelLimit=130))
    spans = (
        alt.Chart(table)
        .mark_bar(height=4, cornerRadius=2, color="currentColor", opacity=0.15)
        .encode(
            y=y,
            x=alt.X("min(f1):Q", title="F1", scale=alt.Scale(domain=[0, 1]), axis=alt.Axis(tickCount=6)),
            x2="max(f1):Q",
        )
    )
    points = (
        alt.Chart(table)
        .mark_point(filled=True, size=70, opacity=0.9)
        .encode(
            y=y,
            x="f1:Q",
            color=alt.Color("configuration:N", sort=configurations, title=None, legend=legend_of(configurations)),
            tooltip=[
                alt.Tooltip("label:N"),
                alt.Tooltip("configuration:N"),
                alt.Tooltip("precision:Q", format=".3f"),
                alt.Tooltip("recall:Q", format=".3f"),
                alt.Tooltip("f1:Q", format=".3f"),
                alt.Tooltip("support:Q", format=","),
            ],
        )
    )
    return alt.layer(spans, points).properties(height=30 * len(names))
