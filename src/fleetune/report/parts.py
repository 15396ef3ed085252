"""What a section of the page is made of."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from fleetune.report.figure import Figure
from fleetune.report.table import TableView


@dataclass(frozen=True)
class Panels:
    """Small figures of one kind, side by side."""

    title: str
    caption: str
    figures: list[Figure]
    legend: list[tuple[str, str]] = field(default_factory=list)


@dataclass(frozen=True)
class Part:
    """A section that needs nothing of its own.

    Attributes:
        key: Its anchor, to which key points refer.
        title: Its heading.
        notes: Sentences below the heading.
        figures: Drawn one after the other.
        panels: Groups of small figures, after those.
        tables: Sortable tables, last.
        short: Its name in the list of sections; the heading where empty.
    """

    key: str
    title: str
    notes: list[str] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    panels: list[Panels] = field(default_factory=list)
    tables: list[TableView] = field(default_factory=list)
    short: str = ""

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to show but notes."""
        return not (self.figures or self.panels or self.tables)

    @property
    def all_figures(self) -> list[Figure]:
        """Every figure of it in the order of the page."""
        return [*self.figures, *(figure for group in self.panels for figure in group.figures)]


def filled(parts: Iterable[Part | None]) -> list[Part]:
    """Returns the parts that have something to show."""
    return [part for part in parts if part is not None and not part.is_empty]
