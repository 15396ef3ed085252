"""What stands on the page, section by section, before any markup."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from fleetune.compare.configuration import shared_settings
from fleetune.compare.row import Row
from fleetune.compare.summary import Comparison
from fleetune.metrics import MINIMISED
from fleetune.report import words
from fleetune.report.audit_view import AuditView, audit_view
from fleetune.report.figure import Figure
from fleetune.report.figures.cost import SECONDS, TRAINABLE, quality_against_cost
from fleetune.report.figures.curves import BAND, MAX_PANELS, learning_curves, loss_panels
from fleetune.report.figures.quality import majority_score, metric_bars
from fleetune.report.figures.sweeps import HOW_TO_READ, sweep_panels
from fleetune.report.found import findings_of
from fleetune.report.label_view import LabelView, label_view
from fleetune.report.overview import Overview, overview, pairs_table
from fleetune.report.parts import Panels, Part, filled
from fleetune.report.table import TableView

if TYPE_CHECKING:
    from fleetune.report.html import Run


@dataclass(frozen=True)
class KeyPoint:
    """A sentence that follows from a test or a count, and where its numbers are."""

    text: str
    anchor: str
    place: str


@dataclass(frozen=True)
class Section:
    """One data set's share of the page."""

    data: str
    overview: Overview
    quality: list[Figure]
    labels: LabelView


@dataclass(frozen=True)
class Page:
    """Everything the template needs.

    Attributes:
        parts: Sections between the configurations and the labels.
        later: Sections between the labels and the data.
        last: Sections after the data.
    """

    title: str
    metric: str
    split: str
    question: str
    verdicts: dict[str, dict[str, Any]]
    points: list[KeyPoint]
    tiles: list[tuple[str, str, str]]
    shared: list[tuple[str, str]]
    sections: list[Section]
    tests: TableView | None
    parts: list[Part]
    later: list[Part]
    audits: list[AuditView]
    last: list[Part]
    notes: list[str]
    hashes: list[tuple[str, str]]
    environment: list[tuple[str, str]]
    command: str
    recipe: str

    @property
    def figures(self) -> list[Figure]:
        """Every figure in the order of the page."""
        found = [figure for section in self.sections for figure in section.quality]
        found += [figure for part in self.parts for figure in part.all_figures]
        found += [figure for section in self.sections for figure in section.labels.figures]
        found += [figure for part in self.later for figure in part.all_figures]
        found += [figure for audit in self.audits for figure in audit.figures]
        return found + [figure for part in self.last for figure in part.all_figures]


def build_page(run: Run, comparison: Comparison) -> Page:
    """Returns the page of `run`, whose trials `comparison` compares."""
    rows = comparison.ranked
    names = list(dict.fromkeys(row.configuration.first.data for row in comparison.rows))
    by_data = [[row for row in rows if row.configuration.first.data == name] for name in names]
    suffixes = [(str(index), name) if len(names) > 1 else () for index, name in enumerate(names, start=1)]
    found = findings_of(run, comparison)
    tests = pairs_table(comparison.tests)
    parts = filled(
        [_costs(by_data, suffixes), _training(by_data, suffixes), _sweeps(by_data, suffixes), *found.on_training]
    )
    later, last = filled(found.on_texts), filled(found.on_use)
    return Page(
        title=run.name,
        metric=words.metric_title(comparison.metric) if comparison.has_one_metric else "each data set's own metric",
        split=words.SPLIT_TITLES.get(comparison.split, comparison.split),
        question=_question(len(rows)),
        verdicts={data: verdict.to_json() for data, verdict in comparison.verdicts.items()},
        points=_key_points(comparison, [*parts, *later, *last], with_tests=tests is not None),
        tiles=_tiles(run, comparison, names),
        shared=_shared(comparison),
        sections=[_section(comparison, rows, suffix) for rows, suffix in zip(by_data, suffixes, strict=True)],
        tests=tests,
        parts=parts,
        later=later,
        audits=[audit_view(audit, index) for index, audit in enumerate(run.audits, start=1)],
        last=last,
        notes=_notes(comparison),
        environment=flat_facts(run.environment),
        hashes=list(run.hashes.items()),
        command=run.command,
        recipe=words.without_folders(run.recipe_text),
    )


def _key_points(comparison: Comparison, parts: Sequence[Part], with_tests: bool) -> list[KeyPoint]:
    """Returns the claims; one whose section is not on the page refers to the table of configurations."""
    places = {"configurations": "Configurations", "labels": "Labels", "data": "Data", "repeat": "Repeat it"}
    places |= {part.key: part.title for part in parts}
    places |= {"tests": "Tests of pairs"} if with_tests else {}
    anchors = [claim.evidence if claim.evidence in places else "configurations" for claim in comparison.claims]
    return [
        KeyPoint(claim.text, anchor, places[anchor]) for claim, anchor in zip(comparison.claims, anchors, strict=True)
    ]


def _section(comparison: Comparison, rows: Sequence[Row], suffix: Sequence[str]) -> Section:
    scored = [row for row in rows if math.isfinite(row.mean)]
    data = rows[0].configuration.first.data
    return Section(
        data=data,
        overview=overview(rows, comparison.recommended_on(data), rows[0].metric in MINIMISED),
        quality=[metric_bars(comparison, scored, words.key("score", *suffix))] if scored else [],
        labels=label_view(rows, comparison.split, comparison.lead_on(data), suffix),
    )


def _costs(by_data: Sequence[Sequence[Row]], suffixes: Sequence[Sequence[str]]) -> Part:
    figures = [
        _of_data(figure, rows, by_data)
        for rows, suffix in zip(by_data, suffixes, strict=True)
        for cost in (TRAINABLE, SECONDS)
        if (figure := quality_against_cost(rows, cost, words.key("cost", cost.name, *suffix))) is not None
    ]
    return Part("cost", "Quality against cost", figures=figures, short="Cost")


def _training(by_data: Sequence[Sequence[Row]], suffixes: Sequence[Sequence[str]]) -> Part:
    figures: list[Figure] = []
    panels: list[Panels] = []
    for rows, suffix in zip(by_data, suffixes, strict=True):
        trained = [row for row in rows if not row.is_baseline]
        if not trained:
            continue
        for metric in dict.fromkeys([trained[0].metric, "loss"]):
            drawn = learning_curves(trained, metric, words.key("curve", metric, *suffix))
            if len(drawn) > 1 or any(figure.size == "panel" for figure in drawn):
                title = f"{words.capitalised(words.metric_title(metric))} on validation, by method"
                panels.append(Panels(_titled(title, rows, by_data), drawn[0].caption, drawn))
            else:
                figures += [_of_data(figure, rows, by_data) for figure in drawn]
        losses = loss_panels([row.configuration for row in trained], words.key("loss", *suffix))
        if losses:
            panels.append(_loss_section(losses, len(trained), _titled("Loss by step", rows, by_data)))
    return Part("training", "Learning curves", figures=figures, panels=panels)


def _sweeps(by_data: Sequence[Sequence[Row]], suffixes: Sequence[Sequence[str]]) -> Part:
    panels = [
        replace(group, title=_titled(group.title, rows, by_data))
        for rows, suffix in zip(by_data, suffixes, strict=True)
        for group in sweep_panels(rows, words.key("sweep", *suffix))
    ]
    return Part("sweeps", "What each setting does", [HOW_TO_READ], panels=panels, short="Settings")


def _loss_section(panels: list[Figure], configurations: int, title: str) -> Panels:
    caption = f"One panel a configuration, all on one scale. {BAND} {panels[0].caption}".strip()
    if configurations > MAX_PANELS:
        caption += f" The {MAX_PANELS} best of {configurations} are shown."
    return Panels(title, caption, panels, [("muted", "training"), ("accent", "validation")])


def _titled(title: str, rows: Sequence[Row], by_data: Sequence[Sequence[Row]]) -> str:
    return f"{title} · {rows[0].configuration.first.data}" if len(by_data) > 1 else title


def _of_data(figure: Figure, rows: Sequence[Row], by_data: Sequence[Sequence[Row]]) -> Figure:
    return replace(figure, title=_titled(figure.title, rows, by_data))


def _question(configurations: int) -> str:
    if configurations < 2:
        return "What does this fine-tune achieve?"
    return f"Which of {configurations} configurations should be shipped, and is the difference real?"


def _tiles(run: Run, comparison: Comparison, names: Sequence[str]) -> list[tuple[str, str, str]]:
    statuses = [trial.status for trial in run.trials]
    others = [f"{statuses.count(status)} {status}" for status in ("failed", "running", "pending") if status in statuses]
    trials = f"of {len(statuses)} trials" + (f"; {', '.join(others)}" if others else "")
    tiles = [("Finished", str(statuses.count("done")), trials)]
    scored = [row for row in comparison.ranked if math.isfinite(row.mean)]
    if scored and len(names) == 1:
        title = words.metric_title(comparison.metric)
        tiles += _lead_tile(comparison, names[0], title)
        baseline = majority_score(scored, comparison.metric, comparison.split)
        if baseline is not None:
            tiles.append(("Most frequent answer", words.score(baseline), f"{title} of always giving it"))
    labels, texts = _scored_texts(comparison)
    if texts:
        split = words.SPLIT_TITLES.get(comparison.split, comparison.split)
        tiles.append((f"{words.capitalised(split)} texts", words.integer(texts), f"{labels} labels"))
    return tiles


def _lead_tile(comparison: Comparison, data: str, title: str) -> list[tuple[str, str, str]]:
    """Returns the mean of what is recommended: the highest of several means would crown what no test has shown."""
    name = comparison.recommended_on(data)
    return [] if name is None else [(f"Mean {title}", words.score(comparison.row(name).mean), name)]


def _scored_texts(comparison: Comparison) -> tuple[int, int]:
    for row in comparison.rows:
        for trial in row.configuration.done:
            if comparison.split in trial.predictions:
                return len(trial.label_names), len(trial.labels(comparison.split))
    return 0, 0


def _shared(comparison: Comparison) -> list[tuple[str, str]]:
    firsts = [row.configuration.first for row in comparison.rows]
    facts = [
        (name, next(iter(values)))
        for name in ("data", "backbone")
        if len(values := {str(getattr(first, name)) for first in firsts}) == 1
    ]
    settings = shared_settings(firsts) if len(firsts) > 1 else {}
    return facts + [(name, words.setting(value)) for name, value in settings.items() if value is not None]


def _notes(comparison: Comparison) -> list[str]:
    """Returns what backbones said when they were loaded, each once."""
    trials = [trial for row in comparison.rows for trial in row.configuration.trials]
    several = len({trial.backbone for trial in trials}) > 1
    notes: dict[str, None] = {}
    for trial in trials:
        said = [note for note in trial.notes if not (trial.layout_reason and trial.layout_reason in note)]
        if trial.layout:
            said.append(f"Layout {trial.layout}" + (f": {trial.layout_reason}" if trial.layout_reason else ""))
        if trial.precision:
            said.append(f"Frozen weights are computed in {trial.precision}")
        notes |= dict.fromkeys(f"{trial.backbone}: {note}" if several else note for note in said)
    return list(notes)


def flat_facts(environment: Any, prefix: str = "") -> list[tuple[str, str]]:
    """Returns the facts of a table of tables as names and values in words, one after the other."""
    pairs: list[tuple[str, str]] = []
    for name, value in environment.items():
        label = f"{prefix}{name}".replace("_", " ")
        if isinstance(value, dict):
            pairs += flat_facts(value, "" if name == "packages" else f"{label} ")
        else:
            pairs.append((label, words.setting(value)))
    return pairs
