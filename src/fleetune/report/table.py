"""Tables that a reader can sort: what each cell reads, and what it is sorted by."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fleetune.report import words

if TYPE_CHECKING:
    import pandas as pd

MAX_ROWS = 200
LONG_TEXT = 40


@dataclass(frozen=True)
class Cell:
    """A table's cell.

    Attributes:
        text: What is read.
        value: What it is sorted by; None where nothing is known, which stands last either way.
        detail: A second, smaller line.
    """

    text: str
    value: float | str | None
    detail: str = ""


@dataclass(frozen=True)
class Column:
    """How a column of a frame is shown.

    Attributes:
        title: Its heading; the frame's own name for it where empty.
        write: Makes the text of a value.
        numeric: Whether it is sorted as numbers; found from the values where None.
    """

    title: str = ""
    write: Callable[[Any], str] | None = None
    numeric: bool | None = None


@dataclass(frozen=True)
class Heading:
    """A column's title, whether it is sorted as `number` or `text`, and whether its text is long enough to wrap."""

    title: str
    kind: str
    wraps: bool = False


@dataclass(frozen=True)
class TableView:
    """A table as the page shows it.

    Attributes:
        key: Its anchor; letters, digits and hyphens.
        title: What it lists.
        caption: How to read it.
        columns: The headings.
        rows: The cells, one list a row, the most important row first.
        total: How many rows there are, of which `rows` are the first.
    """

    key: str
    title: str
    caption: str
    columns: list[Heading]
    rows: list[list[Cell]]
    total: int


def table_view(
    key: str,
    title: str,
    caption: str,
    frame: pd.DataFrame,
    columns: Mapping[str, Column] | None = None,
    limit: int = MAX_ROWS,
) -> TableView:
    """Returns a table of a frame's first rows.

    Args:
        key: Anchor of the table.
        title: What it lists.
        caption: How to read it.
        frame: The rows.
        columns: By name, in the order wished, the columns to show; all of the frame's, as they are, where None.
            Names that the frame lacks are passed over.
        limit: Most rows shown.
    """
    shown = {name: Column() for name in map(str, frame.columns)} if columns is None else columns
    shown = {name: column for name, column in shown.items() if name in frame.columns}
    cells = {name: [_cell(value, column.write) for value in frame[name].head(limit)] for name, column in shown.items()}
    return TableView(
        key=key,
        title=title,
        caption=caption,
        columns=[_heading(name, column, cells[name]) for name, column in shown.items()],
        rows=[list(row) for row in zip(*cells.values(), strict=True)],
        total=len(frame),
    )


def _heading(name: str, column: Column, cells: list[Cell]) -> Heading:
    known = [cell.value for cell in cells if cell.value is not None]
    numeric = column.numeric
    if numeric is None:
        numeric = bool(known) and not any(isinstance(value, str) for value in known)
    title = column.title or words.capitalised(name.replace("_", " "))
    return Heading(title, "number" if numeric else "text", any(len(cell.text) > LONG_TEXT for cell in cells))


def _cell(value: Any, write: Callable[[Any], str] | None) -> Cell:
    value = _plain(value)
    if write is not None:
        return Cell(write(value), _sorted_by(value))
    return Cell(words.DASH if value is None else written(value), _sorted_by(value))


def written(value: Any) -> str:
    """Returns any value as a table shows it: whole numbers with thousands apart, others with four digits."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}"
    return words.setting(value)


def _plain(value: Any) -> Any:
    """Returns a Python value for one of numpy or pandas, and None for what is missing."""
    value = value.item() if hasattr(value, "item") and getattr(value, "ndim", 0) == 0 else value
    if value is None or (isinstance(value, float) and not math.isfinite(value)) or type(value).__name__ == "NAType":
        return None
    return value


def _sorted_by(value: Any) -> float | str | None:
    if isinstance(value, bool | int | float):
        return float(value)
    if isinstance(value, list | tuple) and value and isinstance(value[0], int | float):
        return float(value[0])
    return None if value is None else words.setting(value)
