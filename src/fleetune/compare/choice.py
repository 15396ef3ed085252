"""Which configuration validation chooses: the one that the others are then held against."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fleetune.compare.row import Row
from fleetune.metrics import is_better


@dataclass(frozen=True)
class Choice:
    """A chosen row.

    Attributes:
        row: The row.
        by_validation: Whether scores on validation chose it.
        on_scored: Whether it was chosen by the scores that are then compared.
    """

    row: Row
    by_validation: bool
    on_scored: bool

    @property
    def chooser(self) -> str:
        """Who chose, and its verb."""
        return "validation chooses" if self.by_validation else "the scores shown choose"

    @property
    def words(self) -> str:
        """How it was chosen, for "…: WORDS"."""
        return f"{self.chooser} it"

    @property
    def clause(self) -> str:
        """How it was chosen, for "NAME, WORDS"."""
        return f"which {self.chooser}"


def choose(rows: Sequence[Row], split: str) -> Choice | None:
    """Returns the trained row of the best mean on validation, of those that learned something there with every seed.

    Nothing of the scored split decides, so that a choice that fails there is seen to fail. Only where no row has scores
    on validation do those that are compared decide. A row with one seed is chosen only where no row has two. Of equal
    ones it is the one that trains fewer parameters.

    Args:
        rows: Rows on the same data.
        split: Which split they are scored on.
    """
    trained = [row for row in rows if not row.is_baseline and row.scores]
    validated = [row for row in trained if math.isfinite(row.validation)]
    by_validation = bool(validated)
    if by_validation:
        usable = _learned([(row, row.unlearned) for row in validated])
    else:
        usable = _learned([(row, row.degenerate) for row in trained if math.isfinite(row.mean)])
    usable = [row for row in usable if len(row.scores) > 1] or usable
    best: Row | None = None
    for row in usable:
        score, highest = _score(row, by_validation), _score(best, by_validation) if best else math.nan
        if best is None or is_better(row.metric, score, highest) or (score == highest and _is_smaller(row, best)):
            best = row
    return None if best is None else Choice(best, by_validation, not by_validation or split == "validation")


def _learned(rows: Sequence[tuple[Row, Mapping[int, str]]]) -> list[Row]:
    """Returns the rows all of whose seeds learned; where there are none, those of which most did."""
    return [row for row, silent in rows if not silent] or [
        row for row, silent in rows if 2 * len(silent) < len(row.scores)
    ]


def _is_smaller(row: Row, other: Row) -> bool:
    return (row.trainable or math.inf) < (other.trainable or math.inf)


def _score(row: Row, by_validation: bool) -> float:
    return row.validation if by_validation else row.mean
