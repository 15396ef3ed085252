"""What the page says of a data set's audit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fleetune.report import words
from fleetune.report.figure import Figure
from fleetune.report.figures.audit import SPLITS, class_counts, token_lengths


@dataclass(frozen=True)
class AuditView:
    """One data set's audit."""

    name: str
    facts: list[tuple[str, str]]
    warnings: list[str]
    notes: list[str]
    reasons: list[tuple[str, str]]
    figures: list[Figure]


def audit_view(audit: dict[str, Any], index: int) -> AuditView:
    """Returns what is said of the audit of the data set with that number, from 1."""
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
        *((f"{words.capitalised(title)} texts", audit.get(split)) for split, title in words.SPLIT_TITLES.items()),
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
