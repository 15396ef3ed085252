"""What every check of the page needs: the run, what was recomputed, and how cells are held against it."""

from __future__ import annotations

import math
import re
from typing import Any

from tests.recomputed import insights
from tests.recomputed.comparison import Recomputed
from tests.recomputed.inference import Row
from tests.recomputed.page import Cell, Node
from tests.recomputed.printed import Checks
from tests.recomputed.stored import Stored
from tests.recomputed.verdict import NEAR


class Context:
    """A run beside what was recomputed of it, and its page."""

    def check(self) -> None:
        """Checks what it is for."""
        raise NotImplementedError

    def __init__(self, stored: Stored, found: Recomputed, checks: Checks, page: Node) -> None:
        self.stored, self.found, self.checks, self.page = stored, found, checks, page
        self.data = list(found.outcomes)

    def _number(self, where: str, cell: Cell, expected: float | None, relative: float = 1e-6) -> None:
        """Checks a cell: what is read, and what it is sorted by."""
        self.checks.printed(where, cell.text, expected, relative)
        if cell.value is not None:
            self.checks.close(f"{where}, sorted by", cell.number, expected, relative)

    def _ends(self, where: str, text: str, ends: tuple[float, float] | None) -> None:
        low, _, high = text.partition(" to ")
        self.checks.printed(f"{where}, low", low, ends and ends[0])
        self.checks.printed(f"{where}, high", high, ends and ends[1])

    def _data_of(self, key: str, stem: str) -> str:
        """Returns the data set that a figure is about: the first, or that of the number which follows the stem."""
        found = re.match(rf"{stem}-(\d+)-", key + "-")
        return self.data[int(found[1]) - 1] if found and len(self.data) > 1 else self.data[0]

    def _standing(self, row: Row) -> str:
        if row.degenerate:
            return "degenerate"
        known = {"ahead": "better, but not chosen", "not comparable": "not compared"}
        standing = self.found.outcomes[row.data].standing[row.name]
        return "tied with the best" if standing in NEAR else known.get(standing, "below the best")

    def _entries(self) -> dict[tuple[str, str, str], list[Row]]:
        """Returns the trained rows by data, backbone and the method's entry in the recipe."""
        found: dict[tuple[str, str, str], list[Row]] = {}
        for row in self.found.rows:
            if not row.is_baseline:
                found.setdefault((row.data, row.first.row["backbone"], row.first.entry), []).append(row)
        return found

    def _lead(self, data: str) -> Row | None:
        """Returns the row of which most is shown: the recommended or the chosen one, else the best."""
        rows = [row for row in insights.best_first(self.found.outcomes[data].rows) if math.isfinite(row.mean)]
        return next((row for row in rows if row.name == self._lead_name(data)), rows[0] if rows else None)

    def _lead_name(self, data: str) -> str | None:
        of_data = self.found.outcomes[data]
        return of_data.recommended or (of_data.chosen.name if of_data.chosen else None)

    def _more_rows(self, name: str) -> list[Row]:
        """Returns the rows that are looked at more closely, the one to ship first, without what learned nothing."""
        rows = [row for row in insights.best_first(self.found.outcomes[name].rows) if row.scored()]
        lead = next((row for row in rows if row.name == self._lead_name(name)), None)
        return insights.telling([lead, *(row for row in rows if row is not lead)] if lead else rows)[:6]

    def _same_texts(self, name: str, row: Row) -> Any:
        held = self.stored.texts(name, self.found.split)
        return held if held is not None and len(held.texts) == row.texts else None
