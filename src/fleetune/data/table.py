"""Records as read from a source, before labels are understood."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from fleetune.data.config import DataConfig
from fleetune.data.dataset import SplitName
from fleetune.errors import DataError

Cell = str | int | float | bool | bytes | list[object] | dict[str, object] | None
EXCERPT_CHARACTERS = 200
MOST_QUARANTINED = 50_000
"""Of one data set, listed one by one; the others are counted."""
MOST_KINDS, OTHER_KIND = 1_000, "other reasons"
SHOWN_COLUMNS, SHOWN_CHARACTERS = 20, 40


@dataclass(frozen=True, slots=True)
class QuarantinedRecord:
    """A record that cannot be used.

    Attributes:
        file: Name of its source.
        line: Line of its start (row, where the source has no lines).
        reason: Why, in words.
        excerpt: Its beginning, as read.
    """

    file: str
    line: int
    reason: str
    excerpt: str = ""

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.reason}"


class Quarantine(list[QuarantinedRecord]):
    """Records that cannot be used: the first ones whole, and how many more there are for each kind of reason.

    A file of bad rows of a letter each would otherwise take a hundred times its size in memory.
    """

    def __init__(self, records: Iterable[QuarantinedRecord] = ()) -> None:
        super().__init__()
        self.unlisted: Counter[str] = Counter()
        for record in records:
            self.append(record)

    def append(self, record: QuarantinedRecord) -> None:
        """Adds a record; past `MOST_QUARANTINED` only its kind is counted."""
        if len(self) < MOST_QUARANTINED:
            super().append(record)
            return
        kind = reason_kind(record.reason)
        self.unlisted[kind if kind in self.unlisted or len(self.unlisted) < MOST_KINDS else OTHER_KIND] += 1

    def take(self, other: Quarantine) -> None:
        """Adds the records of another quarantine in order of their lines."""
        for record in sorted(other, key=lambda bad: bad.line):
            self.append(record)
        self.unlisted.update(other.unlisted)

    @property
    def number(self) -> int:
        """How many records cannot be used, listed or not."""
        return len(self) + self.unlisted.total()


def reason_kind(reason: str) -> str:
    """Returns what a reason is counted under: what stands before its details."""
    head = reason.split(":")[0]
    return "unknown label" if head.startswith("unknown label") else head


@dataclass
class Table:
    """The named columns of one source.

    Attributes:
        source: Name of the file or hub split.
        lines: Line of each readable record.
        columns: Cells of each named column, one a readable record.
        quarantine: Records that could not be read.
        class_names: Names of integer labels, where the source declares them.
        notes: What a reader of the audit should know of this source.
        labelled: Whether its texts have labels; only those of test may lack them.
    """

    source: str
    columns: dict[str, list[Cell]]
    lines: list[int] = field(default_factory=list)
    quarantine: Quarantine = field(default_factory=Quarantine)
    class_names: list[str] | None = None
    notes: list[str] = field(default_factory=list)
    labelled: bool = True


class MissingColumnError(DataError):
    """A source lacks a column.

    Attributes:
        present: The columns that it has.
    """

    def __init__(self, message: str, present: Sequence[str]) -> None:
        self.present = list(present)
        super().__init__(message)


def check_columns(source: str, present: Sequence[str], wanted: Sequence[str]) -> None:
    """Raises MissingColumnError naming the nearest if a wanted column is absent, DataError if it stands twice."""
    for name in wanted:
        count = list(present).count(name)
        if count > 1:
            raise DataError(
                f"{source}: column {name!r} stands {count} times in the header; rename all but one of them."
            )
        if count == 0:
            listed = list_columns(present)
            near = difflib.get_close_matches(name.casefold(), [column.casefold() for column in present], n=1)
            nearest = next((column for column in present if near and column.casefold() == near[0]), None)
            hint = f"; did you mean {nearest[:SHOWN_CHARACTERS]!r}?" if nearest else "."
            raise MissingColumnError(
                f"{source} has no column {name!r}{hint}\nIts columns are {listed}; name one of them in [data].",
                present,
            )


def read_split(split: SplitName, read: Callable[[DataConfig], Table], config: DataConfig) -> Table:
    """Returns what `read` gives; texts of test are read without their labels where the source has no column of those.

    Raises:
        DataError: If the source cannot be read, or lacks a column that is needed.
    """
    try:
        return read(config)
    except MissingColumnError as error:
        if split != "test" or any(name in error.present for name in config.label_columns):
            raise
    # A column of text in the place of the label's leaves the text's columns and those of `where` to be read.
    table = read(config.model_copy(update={"label": config.text_columns[0]}))
    table.labelled = False
    return table


def list_columns(present: Sequence[str]) -> str:
    """Returns the names of columns for a message: not too many, and none too long."""
    shown = [repr(column if len(column) <= SHOWN_CHARACTERS else column[:SHOWN_CHARACTERS] + "…") for column in present]
    more = ", …" if len(shown) > SHOWN_COLUMNS else ""
    return (", ".join(shown[:SHOWN_COLUMNS]) + more) if shown else "none"


def excerpt(text: str) -> str:
    """Returns the beginning of a bad record, for a person to recognise it by."""
    return text[:EXCERPT_CHARACTERS].replace("\0", "\\0")
