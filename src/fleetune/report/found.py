"""What else was found out about a run, put in its place on the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fleetune.compare import budget, data_curve, disagreement, label_errors, slices
from fleetune.compare.calibration import OperatingPoints, Reliability, operating_points, reliability
from fleetune.compare.held_out import HeldOutTexts
from fleetune.compare.row import Row, scored_trials
from fleetune.compare.summary import Comparison
from fleetune.report.figures.calibration import MAX_PANELS
from fleetune.report.findings import (
    budget_part,
    calibration_part,
    data_curve_part,
    disagreements_part,
    label_errors_part,
    slices_part,
    test_uses_part,
)
from fleetune.report.parts import Part

if TYPE_CHECKING:
    import pandas as pd

    from fleetune.report.html import Run

FEWEST_TEXTS = 20
"""Of a split below it parts and disagreements are anecdotes."""
FEWER_STEPS = "Each size trains for the same epochs, so that fewer texts are fewer steps, too."
SLICED = 6
"""Configurations whose parts are scored: the best of them."""


@dataclass(frozen=True)
class Findings:
    """Sections by their place on the page.

    Attributes:
        on_training: After the sweeps: what the tuning cost, and whether more texts would help.
        on_texts: After the labels: calibration, slices, disagreements, likely label errors.
        on_use: After the data: what the test texts were used for.
    """

    on_training: list[Part | None] = field(default_factory=list)
    on_texts: list[Part | None] = field(default_factory=list)
    on_use: list[Part | None] = field(default_factory=list)


def findings_of(run: Run, comparison: Comparison) -> Findings:
    """Returns the sections that the run's trials and texts have something for."""
    by_data: dict[str, list[Row]] = {}
    for row in comparison.ranked:
        by_data.setdefault(row.configuration.first.data, []).append(row)
    split = comparison.split
    scored = {name: _lead_first(rows, comparison) for name, rows in by_data.items()}
    scored = {name: rows for name, rows in scored.items() if rows}
    return Findings(
        on_training=[_budget(comparison.rows), _data_curve(run, comparison)],
        on_texts=[
            _calibration(scored, split),
            _slices(scored, split, run.texts),
            _disagreements(scored, split, run.texts),
            _label_errors(scored, split, run.texts),
        ],
        on_use=[test_uses_part(run.test_uses)],
    )


def _lead_first(rows: Sequence[Row], comparison: Comparison) -> list[Row]:
    """Returns the rows with predictions, the one to ship first: recommended, else what validation chooses."""
    name = rows[0].configuration.first.data
    usable = [row for row in rows if scored_trials(row.configuration, comparison.split)]
    lead = next((row for row in usable if row.name == comparison.lead_on(name)), None)
    return usable if lead is None else [lead, *(row for row in usable if row is not lead)]


def _budget(rows: Sequence[Row]) -> Part | None:
    """Returns the budgets of rows in the recipe's order: where validation is equal, no test score may decide."""
    by_data: dict[str, list[Row]] = {}
    for row in rows:
        by_data.setdefault(row.configuration.first.data, []).append(row)
    found = budget.budgets(rows)
    if not found:
        return None
    sentence = budget.unequal(found)
    expected = {name: (members[0].metric, _expected_best(members)) for name, members in by_data.items()}
    return budget_part(budget.frame(found), [sentence] if sentence else [], expected)


def _expected_best(rows: Sequence[Row]) -> pd.DataFrame:
    """Returns the expected best score of every method, called by its backbone, too, where there are several."""
    table = budget.expected_best_frame(rows)
    if table["backbone"].nunique() > 1:
        table["method"] = table["method"] + " · " + table["backbone"]
    return table


def _data_curve(run: Run, comparison: Comparison) -> Part | None:
    points = data_curve.data_curve(run.trials, comparison.split)
    if not points:
        return None
    by_data: dict[str, list[data_curve.CurvePoint]] = {}
    for point in points:
        by_data.setdefault(point.data, []).append(point)
    tables = {name: (members[0].metric, data_curve.frame(members)) for name, members in by_data.items()}
    return data_curve_part(tables, [*data_curve.more_labels_help(points), FEWER_STEPS])


def _calibration(scored: Mapping[str, Sequence[Row]], split: str) -> Part | None:
    found = {
        name: [reliability(row, split) for row in _most_telling(rows)[:MAX_PANELS]] for name, rows in scored.items()
    }
    measured = [(name, one) for name, members in found.items() for one in members if one.temperatures]
    if not measured:
        return None
    points = {name: operating_points(rows[0], split) for name, rows in scored.items() if not rows[0].is_baseline}
    return calibration_part(
        _joined([(name, _bins(one)) for name, one in measured]),
        _joined([(name, _errors(one)) for name, one in measured]),
        _wishes(points),
        split,
    )


def _most_telling(rows: Sequence[Row]) -> list[Row]:
    """Returns the first row, and those of the others that learned something with every seed."""
    return [*rows[:1], *(row for row in rows[1:] if not row.degenerate)]


def _bins(one: Reliability) -> pd.DataFrame:
    return one.frame().rename(columns={"probabilities": "stage"}).assign(configuration=one.name)


def _errors(one: Reliability) -> pd.DataFrame:
    import pandas as pd

    temperatures = ", ".join(f"{value:.2f}" for value in one.temperatures.values())
    return pd.DataFrame.from_records(
        [
            {
                "configuration": one.name,
                "ece": one.ece,
                "calibrated_ece": one.calibrated_ece,
                "temperatures": temperatures,
            }
        ]
    )


def _wishes(points: Mapping[str, OperatingPoints]) -> pd.DataFrame | None:
    found = [(name, frame.assign(configuration=one.name)) for name, one in points.items() if len(frame := one.frame())]
    return _joined(found) if found else None


def _slices(scored: Mapping[str, Sequence[Row]], split: str, texts: Mapping[str, Any]) -> Part | None:
    parts, weak = [], []
    for name, rows in scored.items():
        held_out = _held_out(texts, name, split, rows)
        if rows[0].texts < FEWEST_TEXTS:
            continue
        best = _most_telling(rows)[:SLICED]
        others = [row for row in best[1:] if not row.is_baseline]
        found = slices.where_it_loses(best[0], others, split, held_out, best[0].metric)
        weak.append((name, slices.weak_spots_frame(found)))
        if held_out is not None:
            own = slices.slice_scores(best[:1], split, held_out, best[0].metric)
            parts.append((name, slices.frame(own)))
    return slices_part(_joined(parts), _joined(weak))


def _disagreements(scored: Mapping[str, Sequence[Row]], split: str, texts: Mapping[str, Any]) -> Part | None:
    found = [
        (
            name,
            disagreement.frame(
                disagreement.disagreements(_most_telling(rows)[:SLICED], split, _held_out(texts, name, split, rows))
            ),
        )
        for name, rows in scored.items()
        if len(rows) > 1 and rows[0].texts >= FEWEST_TEXTS
    ]
    return disagreements_part(_joined(found))


def _label_errors(scored: Mapping[str, Sequence[Row]], split: str, texts: Mapping[str, Any]) -> Part | None:
    found = [
        (name, label_errors.frame(label_errors.label_errors(rows, one, _held_out(texts, name, one, rows))))
        for name, rows in scored.items()
        for one in dict.fromkeys(("validation", split))
        if all(scored_trials(row.configuration, one) for row in rows) and rows[0].texts >= FEWEST_TEXTS
    ]
    return label_errors_part(_joined(found))


def _held_out(texts: Mapping[str, Any], name: str, split: str, rows: Sequence[Row]) -> HeldOutTexts | None:
    """Returns the texts of a split where the run kept them, and they are those that were predicted."""
    found: HeldOutTexts | None = texts.get(name, {}).get(split)
    predicted = len(scored_trials(rows[0].configuration, split)[0].labels(split))
    return found if found is not None and len(found.texts) == predicted else None


def _joined(frames: Sequence[tuple[str, pd.DataFrame]]) -> pd.DataFrame:
    """Returns the frames of all data sets as one, whose column `data` names each row's."""
    import pandas as pd

    filled = [frame.assign(data=name) for name, frame in frames if len(frame)]
    return pd.concat(filled, ignore_index=True) if filled else pd.DataFrame()
