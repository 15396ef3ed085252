"""The user's own columns, by whose values scores are shown apart."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence

from fleetune.data.dataset import Dataset
from fleetune.data.table import Cell
from fleetune.errors import DataError

EMPTY = "(empty)"
MOST_VALUES = 50
SHOWN_CHARACTERS = 40


def slice_value(cell: Cell) -> str:
    """Returns a cell as the name of a slice; `(empty)` where nothing stands there."""
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return EMPTY
    if isinstance(cell, bool):
        return "true" if cell else "false"
    text = json.dumps(cell, default=str, ensure_ascii=False) if isinstance(cell, list | dict) else str(cell)
    # What UTF-8 cannot hold could not be written.
    return text.strip().encode("utf-8", "backslashreplace").decode() or EMPTY


def joined_slices(parts: Sequence[Mapping[str, list[str]]]) -> dict[str, list[str]]:
    """Returns the columns of several sources, one below the other."""
    return {name: [value for part in parts for value in part[name]] for name in (parts[0] if parts else ())}


def check_slices(dataset: Dataset) -> None:
    """Does nothing if each column of slices has few values.

    Raises:
        DataError: If one has more than can be told apart.
    """
    for name, values in dataset.slices.items():
        distinct = list(dict.fromkeys(values))
        if len(distinct) > MOST_VALUES:
            raise DataError(
                f"column {name!r} has {len(distinct):,} different values, such as {distinct[0][:SHOWN_CHARACTERS]!r}; "
                f"at most {MOST_VALUES} make slices.\nTake it out of slices in [data]"
            )
