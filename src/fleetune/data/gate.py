"""How many bad records a run accepts, and the list of them."""

from __future__ import annotations

from collections import Counter

from fleetune.data.table import Quarantine, reason_kind
from fleetune.data.writing import csv_text, harmless
from fleetune.errors import DataError

SHOWN = 3


class TooManyBadRowsError(DataError):
    """More records are bad than `max_bad_rows` accepts.

    Attributes:
        quarantine: All of them; past a number of them, how many more there are.
    """

    def __init__(self, records: int, quarantine: Quarantine, limit: int) -> None:
        self.quarantine = quarantine
        number = quarantine.number
        first = "; ".join(map(str, quarantine[:SHOWN])) + ("; …" if number > SHOWN else "")
        super().__init__(
            f"{number:,} of {records:,} records are bad, and max_bad_rows is {limit}: {first}\n"
            f"Mend them, or type max_bad_rows = {number} in [data] to go on without them."
        )


def open_gate(records: int, quarantine: Quarantine, limit: int) -> None:
    """Raises TooManyBadRowsError if more than `limit` records are quarantined."""
    if quarantine.number > limit:
        raise TooManyBadRowsError(records, quarantine, limit)


def reasons(quarantine: Quarantine) -> dict[str, int]:
    """Returns the number of records by the kind of reason, the commonest first."""
    kinds = Counter(reason_kind(record.reason) for record in quarantine)
    kinds.update(quarantine.unlisted)
    return dict(kinds.most_common())


def quarantine_csv(quarantine: Quarantine) -> str:
    """Returns the list as CSV, its last row the number of those that are not listed one by one.

    A cell that a spreadsheet would take for a formula begins with an apostrophe.
    """
    rows = [[harmless(one.file), one.line, harmless(one.reason), harmless(one.excerpt)] for one in quarantine]
    if more := quarantine.unlisted.total():
        kinds = ", ".join(f"{number:,} {kind}" for kind, number in quarantine.unlisted.most_common(20))
        rows.append(["", "", f"{more:,} more bad records are not listed: {kinds}", ""])
    return csv_text([["file", "line", "reason", "excerpt"], *rows])
