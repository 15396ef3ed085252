"""How many bad records a run accepts, and the list of them."""

from __future__ import annotations

from collections import Counter

from fleetune.data.table import QuarantinedRecord
from fleetune.data.writing import csv_text, harmless
from fleetune.errors import DataError

SHOWN = 3


class TooManyBadRowsError(DataError):
    """More records are bad than `max_bad_rows` accepts.

    Attributes:
        quarantine: All of them.
    """

    def __init__(self, records: int, quarantine: list[QuarantinedRecord], limit: int) -> None:
        self.quarantine = quarantine
        number = len(quarantine)
        first = "; ".join(map(str, quarantine[:SHOWN])) + ("; …" if number > SHOWN else "")
        super().__init__(
            f"{number:,} of {records:,} records are bad, and max_bad_rows is {limit}: {first}\n"
            f"Mend them, or type max_bad_rows = {number} in [data] to go on without them."
        )


def open_gate(records: int, quarantine: list[QuarantinedRecord], limit: int) -> None:
    """Raises TooManyBadRowsError if more than `limit` records are quarantined."""
    if len(quarantine) > limit:
        raise TooManyBadRowsError(records, quarantine, limit)


def reasons(quarantine: list[QuarantinedRecord]) -> dict[str, int]:
    """Returns the number of records by the kind of reason, the commonest first."""
    kinds = Counter(_kind(record.reason) for record in quarantine)
    return dict(kinds.most_common())


def quarantine_csv(quarantine: list[QuarantinedRecord]) -> str:
    """Returns the list as CSV. A cell that a spreadsheet would take for a formula begins with an apostrophe."""
    rows = [[harmless(one.file), one.line, harmless(one.reason), harmless(one.excerpt)] for one in quarantine]
    return csv_text([["file", "line", "reason", "excerpt"], *rows])


def _kind(reason: str) -> str:
    head = reason.split(":")[0]
    return "unknown label" if head.startswith("unknown label") else head
