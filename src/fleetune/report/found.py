"""What else was found out about a run, put in its place on the page."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fleetune.compare.summary import Comparison
from fleetune.report.findings import test_uses_part
from fleetune.report.parts import Part

if TYPE_CHECKING:
    from fleetune.report.html import Run


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
    return Findings(on_use=[test_uses_part(getattr(run, "test_uses", ()))])
