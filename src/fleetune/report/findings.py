"""Sections of the page on what else was found out about a run, each from frames of numbers.

Where a run has several data sets, the frames name each row's in a column `data`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fleetune.compare.held_out import TestUse
from fleetune.report import words
from fleetune.report.figures.calibration import MAX_PANELS, reliability_panels
from fleetune.report.figures.growth import data_curve_figure, expected_best_figure
from fleetune.report.parts import Panels, Part
from fleetune.report.table import Column, table_view

if TYPE_CHECKING:
    import pandas as pd

SHOWN_LETTERS = 300
SCORE, SIGNED = Column(write=words.score, numeric=True), Column(write=words.signed, numeric=True)
EXPLORATORY = "These were looked for after the fact, among many: take them as places to look, not as findings."


def budget_part(grids: pd.DataFrame, notes: Sequence[str], expected: Mapping[str, tuple[str, pd.DataFrame]]) -> Part:
    """Returns what each method could choose from, and what fewer settings would have given.

    Args:
        grids: One row a method, with the columns `data`, `backbone`, `method`, `settings`, `trials`, `axes`, `chosen`
            and `remarks`.
        notes: Sentences such as that methods had unequal budgets.
        expected: By data its metric and a frame for `expected_best_figure`.
    """
    columns = _data_of(grids) | ({"backbone": Column()} if grids["backbone"].nunique() > 1 else {})
    columns |= {
        "method": Column(),
        "settings": Column("Settings tried"),
        "trials": Column(),
        "axes": Column("Values"),
        "chosen": Column("Chosen on validation"),
        "remarks": Column(),
    }
    caption = "The grid each method had. A setting at the edge of its grid may be better beyond it."
    drawn = [
        expected_best_figure(table, metric, _key("expected-best", name, expected))
        for name, (metric, table) in expected.items()
        if len(table) and table["settings_tried"].max() > 1
    ]
    return Part(
        "budget",
        "Tuning budget",
        list(notes),
        figures=[figure for figure in drawn if figure is not None],
        tables=[table_view("budget-grids", "What each method could choose from", caption, grids, columns)],
        short="Budget",
    )


def data_curve_part(points: Mapping[str, tuple[str, pd.DataFrame]], notes: Sequence[str]) -> Part:
    """Returns the score by number of training texts.

    Args:
        points: By data its metric and a frame for `data_curve_figure`.
        notes: Whether more labels would help, in sentences.
    """
    drawn = [
        data_curve_figure(table, metric, _key("data-curve-score", name, points))
        for name, (metric, table) in points.items()
    ]
    return Part(
        "data-curve",
        "Would more labels help?",
        list(notes),
        figures=[figure for figure in drawn if figure is not None],
        short="More labels",
    )


def calibration_part(bins: pd.DataFrame, errors: pd.DataFrame, points: pd.DataFrame | None, split: str) -> Part:
    """Returns how far probabilities are shares of right answers, and thresholds for wished precisions and recalls.

    Args:
        bins: As `reliability_panels` takes it, the recommended configuration first.
        errors: One row a configuration, with the columns `configuration`, `ece`, `calibrated_ece` and `temperatures`.
        points: One row a label and wish, with the columns `label`, `wish`, `wished`, `reached`, `seeds`, `threshold`,
            `precision` and `recall`; None where one threshold cannot decide.
        split: What it was judged on.
    """
    title = words.SPLIT_TITLES.get(split, split)
    named = {"ece": Column("Error as trained", words.score, True)}
    named |= {"calibrated_ece": Column("Error calibrated", words.score, True)}
    tables = [
        table_view(
            "calibration-errors",
            "Expected calibration error",
            f"On the {title} texts, mean over seeds; nought is perfect. The temperature is fitted on validation.",
            errors,
            {**_data_of(errors), "configuration": Column(), **named, "temperatures": Column("Temperature by seed")},
        )
    ]
    if points is not None and len(points):
        caption = (
            f"Thresholds found on validation, for calibrated probabilities, and what they reach on the {title} texts; "
            "means over the seeds that reach what is wished, each with its own threshold."
        )
        columns = {"configuration": Column(), "label": Column(), "wish": Column("Wished"), "wished": Column("At least")}
        columns |= {"reached": Column("Seeds that reach it"), "seeds": Column(), "threshold": SCORE}
        columns |= {"precision": SCORE, "recall": SCORE}
        tables.append(
            table_view("operating-points", "Thresholds for a wished precision or recall", caption, points, columns)
        )
    caption = "Points on the dashed line come true as often as they say; below it probabilities promise too much. "
    caption += f"A point's area is its number of predictions on the {title} texts, seeds pooled."
    if (of_all := bins["configuration"].nunique()) > MAX_PANELS:
        caption += f" The first {MAX_PANELS} of {of_all} configurations."
    panels = Panels(
        "Reliability",
        caption,
        reliability_panels(bins, "reliability"),
        [("muted", "as trained"), ("accent", "calibrated")],
    )
    return Part("calibration", "Calibration", panels=[panels] if panels.figures else [], tables=tables)


def slices_part(scores: pd.DataFrame, weak_spots: pd.DataFrame) -> Part | None:
    """Returns how configurations do on parts of the texts; None where there are no parts.

    Args:
        scores: One row a configuration and slice, with the columns `name`, `column`, `value`, `texts`, `mean`,
            `difference`, `low`, `high` and `weak`.
        weak_spots: One row a slice or label on which another is better than the chosen one, with the columns `other`,
            `column`, `value`, `texts`, `chosen_mean`, `other_mean`, `difference`, `low`, `high` and `holds`.
    """
    where = {"column": Column("Divided by"), "value": Column("Part"), "texts": Column()}
    differs = {
        "difference": SIGNED,
        "low": Column("From", words.signed, True),
        "high": Column("To", words.signed, True),
    }
    tables = []
    if len(weak_spots):
        caption = (
            f"Difference with its 95 % interval over the texts, of these trained classifiers. {EXPLORATORY} "
            "Holds: still above nought after correction for all."
        )
        means = {"chosen_mean": Column("Chosen", words.score, True), "other_mean": Column("Other", words.score, True)}
        columns = {
            **_data_of(weak_spots),
            **where,
            "other": Column("Better there"),
            **means,
            **differs,
            "holds": Column(),
        }
        tables.append(table_view("weak-spots", "Where another is better", caption, weak_spots, columns))
    if len(scores):
        caption = (
            "Difference: the score on the part less the score on all texts, with its 95 % interval over the texts, of "
            "these trained classifiers."
        )
        columns = {
            **_data_of(scores),
            "name": Column("Configuration"),
            **where,
            "mean": Column("Score", words.score, True),
        }
        tables.append(
            table_view("slice-scores", "Scores by slice", caption, scores, {**columns, **differs, "weak": Column()})
        )
    return Part("slices", "Slices", tables=tables) if tables else None


def disagreements_part(texts: pd.DataFrame) -> Part | None:
    """Returns the texts on which configurations disagree most; None where they agree on all.

    Args:
        texts: One row a text, with the columns `place`, `text`, `truth`, `right` (share of configurations) and one
            `decision of NAME` for each configuration.
    """
    if not len(texts):
        return None
    decided = {str(name): Column(str(name).removeprefix("decision of ")) for name in texts.columns if _decides(name)}
    columns = {
        "place": Column(),
        "text": TEXT,
        "truth": Column("Label"),
        "right": Column("Share right", words.score, True),
    }
    caption = "Each configuration's decision over its seeds; the texts that divide them most come first."
    table = table_view(
        "disagreeing-texts", "Texts that divide the configurations", caption, texts, _data_of(texts) | columns | decided
    )
    return Part("disagreements", "Disagreements", tables=[table])


def label_errors_part(texts: pd.DataFrame) -> Part | None:
    """Returns the texts whose label is likely wrong; None where there are none.

    Args:
        texts: One row a text, with the columns `split`, `place`, `text`, `given`, `suggested`, `quality`,
            `disagreeing` and `trials`.
    """
    if not len(texts):
        return None
    columns = {"split": Column(), "place": Column(), "text": TEXT, "given": Column(), "suggested": Column()}
    columns |= {"quality": SCORE, "disagreeing": Column("Trials against it"), "trials": Column("Of trials")}
    caption = (
        "By confident learning on probabilities of classifiers that did not train on these texts. A list to check by "
    )
    caption += "hand: nothing was changed. Quality: how well the given label fits, 0 to 1."
    table = table_view("suspect-labels", "Labels that are likely wrong", caption, texts, _data_of(texts) | columns)
    return Part("label-errors", "Likely label errors", tables=[table], short="Label errors")


def test_uses_part(uses: Sequence[TestUse]) -> Part | None:
    """Returns each look at the test scores, the latest first; None where there was none."""
    import pandas as pd

    if not uses:
        return None
    records = [
        {"time": one.time, "command": one.command, "metric": words.metric_title(one.metric)}
        | {"configurations": one.configurations}
        for one in reversed(uses)
    ]
    looks = "once" if len(uses) == 1 else f"{len(uses)} times"
    note = (
        f"Scores on the test texts were shown {looks}. Each look that leads to a change of the recipe makes the next "
    )
    note += "score on them less to be trusted."
    table = table_view("looks", "Looks at the test scores", "", pd.DataFrame.from_records(records))
    return Part("test-uses", "Uses of the test texts", [note], tables=[table], short="Test uses")


def _shortened(text: Any) -> str:
    words_of = " ".join(str(text).split())
    return words_of if len(words_of) <= SHOWN_LETTERS else f"{words_of[:SHOWN_LETTERS]} …"


TEXT = Column("Text", _shortened, False)


def _decides(name: object) -> bool:
    return str(name).startswith("decision of ")


def _data_of(frame: pd.DataFrame) -> dict[str, Column]:
    return {"data": Column()} if "data" in frame.columns and frame["data"].nunique() > 1 else {}


def _key(stem: str, name: str, of_all: Mapping[str, object]) -> str:
    return words.key(stem, name) if len(of_all) > 1 else stem
