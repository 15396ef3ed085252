"""What the page says of the labels of one data set: which are taken for which, and the scores of each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fleetune.compare.row import Row
from fleetune.report import words
from fleetune.report.figure import Figure
from fleetune.report.figures.confusion import confusion_panels, label_panels, per_label_bars, per_label_table
from fleetune.report.parts import Panels
from fleetune.thresholds import NEUTRAL

COMPARED_BY_LABEL = 6


@dataclass(frozen=True)
class LabelView:
    """One data set's labels; `lead` is the configuration of which most is shown, None where none has a score."""

    data: str
    lead: str | None
    confusion: Panels | None
    labels: Figure | None
    label_rows: list[dict[str, Any]]
    label_note: str
    threshold_note: str

    @property
    def figures(self) -> list[Figure]:
        """Every figure of it in the order of the page."""
        return (self.confusion.figures if self.confusion else []) + ([self.labels] if self.labels else [])


def label_view(rows: Sequence[Row], split: str, lead_name: str | None, suffix: Sequence[str]) -> LabelView:
    """Returns what is said of the labels of rows on the same data, best first.

    Args:
        rows: The rows.
        split: What was scored.
        lead_name: The row whose labels are shown one by one; where it has no scores, the first that has.
        suffix: Ends the keys of the figures.
    """
    scored = [row for row in rows if math.isfinite(row.mean)]
    lead = next((row for row in scored if row.name == lead_name), scored[0] if scored else None)
    compared = scored[:COMPARED_BY_LABEL]
    by_label = per_label_table([lead], split).to_dict("records") if lead else []
    return LabelView(
        data=rows[0].configuration.first.data,
        lead=lead.name if lead else None,
        confusion=_confusion(rows, lead, split, words.key("confusion", *suffix)),
        labels=per_label_bars(compared, split, words.key("labels", *suffix)),
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
