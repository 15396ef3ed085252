"""What stands on the page, section by section, before any markup."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fleetune.compare.configuration import all_settings, shared_settings
from fleetune.compare.row import Row
from fleetune.compare.summary import Comparison
from fleetune.methods import is_floor
from fleetune.metrics import MINIMISED
from fleetune.report import words
from fleetune.report.figure import Figure
from fleetune.report.figures.audit import SPLITS, class_counts, token_lengths
from fleetune.report.figures.confusion import confusion_panels, label_panels, per_label_bars, per_label_table
from fleetune.report.figures.curves import loss_panels, metrics_by_step
from fleetune.report.figures.quality import majority_score, metric_bars, quality_against_parameters, seconds_bars
from fleetune.thresholds import NEUTRAL

if TYPE_CHECKING:
    from fleetune.report.html import Run

COMPARED_BY_LABEL = 6


@dataclass(frozen=True)
class Cell:
    """A table's cell: what is read, and what it is sorted by."""

    text: str
    value: float | str
    detail: str = ""


@dataclass(frozen=True)
class Line:
    """One configuration in the overview."""

    name: str
    settings: str
    marks: list[tuple[str, str]]
    cells: list[Cell]
    problems: list[str]


@dataclass(frozen=True)
class Panels:
    """Small figures of one kind, side by side."""

    title: str
    caption: str
    figures: list[Figure]
    legend: list[tuple[str, str]] = field(default_factory=list)


@dataclass(frozen=True)
class Section:
    """One data set's share of the page."""

    data: str
    lead: str | None
    columns: list[str]
    lines: list[Line]
    quality: list[Figure]
    confusion: Panels | None
    labels: Figure | None
    label_rows: list[dict[str, Any]]
    label_note: str
    threshold_note: str


@dataclass(frozen=True)
class AuditView:
    """One data set's audit."""

    name: str
    facts: list[tuple[str, str]]
    warnings: list[str]
    notes: list[str]
    reasons: list[tuple[str, str]]
    figures: list[Figure]


@dataclass(frozen=True)
class Page:
    """Everything the template needs."""

    title: str
    metric: str
    split: str
    question: str
    verdict: dict[str, Any]
    tiles: list[tuple[str, str, str]]
    shared: list[tuple[str, str]]
    sections: list[Section]
    losses: Panels | None
    curves: list[Figure]
    time: list[Figure]
    audits: list[AuditView]
    notes: list[str]
    environment: list[tuple[str, str]]
    command: str
    recipe: str

    @property
    def figures(self) -> list[Figure]:
        """Every figure in the order of the page."""
        found: list[Figure] = []
        for section in self.sections:
            found += section.quality
        found += self.losses.figures if self.losses else []
        found += self.curves
        for section in self.sections:
            found += section.confusion.figures if section.confusion else []
            found += [section.labels] if section.labels else []
        found += self.time
        return found + [figure for audit in self.audits for figure in audit.figures]


def build_page(run: Run, comparison: Comparison) -> Page:
    """Returns the page of `run`, whose trials `comparison` compares."""
    rows = comparison.ranked
    names = list(dict.fromkeys(row.configuration.first.data for row in comparison.rows))
    sections = [
        _section(
            comparison,
            [row for row in rows if row.configuration.first.data == name],
            (str(index), name) if len(names) > 1 else (),
        )
        for index, name in enumerate(names, start=1)
    ]
    configurations = [row.configuration for row in rows]
    panels = loss_panels(configurations, "loss")
    timed = [row for row in rows if row.seconds is not None]
    return Page(
        title=run.name,
        metric=words.metric_title(comparison.metric) if comparison.has_one_metric else "each data set's own metric",
        split=words.SPLIT_TITLES.get(comparison.split, comparison.split),
        question=_question(len(rows)),
        verdict=comparison.verdict.to_json(),
        tiles=_tiles(run, comparison, names),
        shared=_shared(comparison),
        sections=sections,
        losses=_loss_section(panels) if panels else None,
        curves=metrics_by_step(rows),
        time=[seconds_bars(timed, "time")] if timed else [],
        audits=[_audit(audit, index) for index, audit in enumerate(run.audits, start=1)],
        notes=_notes(comparison),
        environment=_flat(run.environment),
        command=run.command,
        recipe=run.recipe_text,
    )


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
        extreme = "Lowest" if comparison.metric in MINIMISED else "Highest"
        title = words.metric_title(comparison.metric)
        tiles.append((f"{extreme} mean {title}", words.score(scored[0].mean), scored[0].name))
        baseline = majority_score(scored, comparison.metric, comparison.split)
        if baseline is not None:
            tiles.append(("Most frequent answer", words.score(baseline), f"{title} of always giving it"))
    labels, texts = _scored_texts(comparison)
    if texts:
        split = words.SPLIT_TITLES.get(comparison.split, comparison.split)
        tiles.append((f"{split[:1].upper()}{split[1:]} texts", words.integer(texts), f"{labels} labels"))
    return tiles


def _scored_texts(comparison: Comparison) -> tuple[int, int]:
    for row in comparison.rows:
        for trial in row.configuration.done:
            if comparison.split in trial.predictions:
                return len(trial.label_names), len(trial.predictions[comparison.split][0])
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


def _section(comparison: Comparison, rows: list[Row], suffix: tuple[str, ...]) -> Section:
    split, key = comparison.split, words.key
    scored = [row for row in rows if math.isfinite(row.mean)]
    lead = next((row for row in scored if row.name == comparison.verdict.recommended), scored[0] if scored else None)
    quality = [metric_bars(comparison, scored, key("score", *suffix))] if scored else []
    if any(row.trainable for row in scored):
        quality.append(quality_against_parameters(scored, key("parameters", *suffix)))
    compared = scored[:COMPARED_BY_LABEL]
    by_label = per_label_table([lead], split).to_dict("records") if lead else []
    return Section(
        data=rows[0].configuration.first.data,
        lead=lead.name if lead else None,
        columns=_columns(rows[0].metric),
        lines=[_line(row, comparison.verdict.recommended) for row in rows],
        quality=quality,
        confusion=_confusion(rows, lead, split, key("confusion", *suffix)),
        labels=per_label_bars(compared, split, key("labels", *suffix)),
        label_rows=[{str(name): value for name, value in record.items()} for record in by_label],
        label_note=f"The {len(compared)} best of {len(scored)} configurations." if len(scored) > len(compared) else "",
        threshold_note=_threshold_note(lead),
    )


def _threshold_note(lead: Row | None) -> str:
    """Returns what the column of thresholds shows; nothing where texts have one label each."""
    if lead is None or not lead.configuration.first.multi_label:
        return ""
    seeds = " Mean, and lowest to highest, over seeds." if len(lead.scores) > 1 else ""
    rule = words.threshold_rule(lead.configuration.first.training.get("thresholds", NEUTRAL), "test")
    return f"Threshold: the probability from which the label is given. {rule}{seeds}"


def _confusion(rows: Sequence[Row], lead: Row | None, split: str, key: str) -> Panels | None:
    if lead is None:
        return None
    title = words.SPLIT_TITLES.get(split, split)
    first = lead.configuration.first
    if not first.multi_label:
        figures = confusion_panels(rows, split, key)
        of_all = "" if len(figures) == len(rows) else f"Of the {len(figures)} best of {len(rows)} configurations: "
        caption = (
            f"{of_all}numbers of {title} texts, summed over a configuration's seeds, so a text counts once a seed. "
        )
        caption = caption[:1].upper() + caption[1:]
        return Panels("Confusion matrices", caption + "Shade is the share of the true label.", figures)
    figures = label_panels(lead, split, key)
    labels = len(first.label_names)
    which = "one a label" if len(figures) == labels else f"of the {len(figures)} most frequent of {labels} labels"
    caption = f"Of {lead.name}, {which}: numbers of {title} texts, summed over its seeds. "
    caption += words.threshold_rule(first.training.get("thresholds", NEUTRAL), split)
    return Panels("Confusion matrices by label", caption, figures)


def _columns(metric: str) -> list[str]:
    title = words.metric_title(metric)
    return [title[:1].upper() + title[1:], "Seeds", "Trained", "Adapter", "Head", "Bundle", "Time", "Peak memory"]


def _line(row: Row, recommended: str | None) -> Line:
    parameters = row.configuration.first.parameters
    spread = f" ± {words.score(row.spread)}" if row.spread is not None else ""
    interval = f"{words.score(row.interval[0])} to {words.score(row.interval[1])}" if row.interval else ""
    total = len(row.configuration.trials)
    seeds = str(len(row.scores)) if len(row.scores) == total else f"{len(row.scores)} of {total}"
    return Line(
        name=row.name,
        settings=_settings(row),
        marks=_marks(row, recommended),
        cells=[
            Cell(words.score(row.mean) + spread, _sortable(row.mean), interval),
            Cell(seeds, len(row.scores)),
            Cell(words.integer(row.trainable), _sortable(row.trainable)),
            Cell(words.integer(parameters.get("adapter")), _sortable(parameters.get("adapter"))),
            Cell(words.integer(parameters.get("head")), _sortable(parameters.get("head"))),
            Cell(words.size(row.bundle_bytes), _sortable(row.bundle_bytes)),
            Cell(words.duration(row.seconds), _sortable(row.seconds)),
            Cell(words.size(row.peak_bytes), _sortable(row.peak_bytes)),
        ],
        problems=_problems(row),
    )


def _settings(row: Row) -> str:
    varying = row.configuration.varying or all_settings(row.configuration.first)
    pairs = [f"{name} {words.setting(value)}" for name, value in varying.items() if value is not None]
    return " · ".join(pairs)


def _marks(row: Row, recommended: str | None) -> list[tuple[str, str]]:
    marks = []
    if row.is_baseline:
        marks.append(("baseline", "floor" if is_floor(row.configuration.first.kind) else "baseline"))
    if row.name == recommended:
        marks.append(("recommended", "recommended"))
    if row.tied_with_best and row.has_known_spread and not row.degenerate:
        marks.append(("tied", "tied with the best"))
    if row.degenerate:
        marks.append(("degenerate", "degenerate"))
    if row.configuration.failed:
        marks.append(("failed", f"{len(row.configuration.failed)} failed"))
    return marks


def _problems(row: Row) -> list[str]:
    problems = [f"Seed {seed}: {reason}." for seed, reason in row.degenerate.items()]
    for trial in row.configuration.trials:
        if trial.status == "failed":
            problems.append(f"Seed {trial.seed} failed: {trial.reason or 'no reason was recorded'}.")
        elif trial.status != "done":
            problems.append(f"Seed {trial.seed} is {trial.status}.")
    return problems


def _loss_section(panels: list[Figure]) -> Panels:
    caption = "One panel a configuration, all on one scale; every seed is drawn. " + panels[0].caption
    return Panels("Loss by step", caption.strip(), panels, [("muted", "training"), ("accent", "validation")])


def _audit(audit: dict[str, Any], index: int) -> AuditView:
    found = [class_counts(audit, f"audit-{index}-labels"), token_lengths(audit, f"audit-{index}-tokens")]
    near = audit.get("near_leaks")
    near_total = sum(near.values()) if isinstance(near, dict) else near
    accepted = audit.get("accepted")
    texts = sum(int(audit.get(split) or 0) for split in SPLITS) or accepted or 0
    truncated = audit.get("truncated")
    counted = [
        ("Records read", audit.get("records")),
        ("Accepted", accepted),
        ("Quarantined", audit.get("quarantined")),
        ("Left out by where", audit.get("filtered") or None),
        ("Left out by sample", audit.get("sampled_out") or None),
        *((f"{title[:1].upper()}{title[1:]} texts", audit.get(split)) for split, title in words.SPLIT_TITLES.items()),
        ("Test texts without labels, not scored", audit.get("unscored") or None),
        ("Duplicates", audit.get("duplicates")),
        ("Texts with conflicting labels", audit.get("conflicts")),
        ("Texts of validation or test also in training", audit.get("leaks")),
        ("Nearly in training", near_total),
        ("Left out because they leak", audit.get("dropped") or None),
    ]
    facts = [(name, words.integer(number)) for name, number in counted if number is not None]
    if windowed := audit.get("windowed"):
        facts.append(("Read in several windows", f"{windowed:,} ({words.share(windowed, texts)})"))
    if truncated is not None:
        cut = "Cut after the last window" if windowed else f"Cut to {audit.get('max_tokens')} tokens"
        facts.append((cut, f"{truncated:,} ({words.share(truncated, texts)})"))
    return AuditView(
        name=str(audit.get("name", "data")),
        facts=facts,
        warnings=list(audit.get("warnings") or []),
        notes=list(audit.get("notes") or []),
        reasons=[(str(reason), words.integer(number)) for reason, number in (audit.get("reasons") or {}).items()],
        figures=[figure for figure in found if figure is not None],
    )


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


def _flat(environment: Any, prefix: str = "") -> list[tuple[str, str]]:
    pairs: list[tuple[str, str]] = []
    for name, value in environment.items():
        label = f"{prefix}{name}".replace("_", " ")
        if isinstance(value, dict):
            pairs += _flat(value, "" if name == "packages" else f"{label} ")
        else:
            pairs.append((label, words.setting(value)))
    return pairs


def _sortable(value: float | None) -> float:
    return -math.inf if value is None or not math.isfinite(value) else float(value)
