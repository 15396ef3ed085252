"""How results, errors and tables reach a terminal, a pipe or a program."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from fleetune.redaction import redacted

# What would move the cursor or hide text: texts and labels come from data.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")


def print_json(value: Any) -> None:
    """Prints one JSON object on stdout; numbers that JSON does not have become null."""
    utf8 = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
    text = json.dumps(_plain(value), indent=2, ensure_ascii=not utf8, allow_nan=False)
    text = _CONTROL.sub(lambda match: f"\\u{ord(match[0]):04x}", text)
    sys.stdout.write(text.encode("utf-8", "backslashreplace").decode("utf-8") + "\n")
    sys.stdout.flush()


def print_line(text: str = "") -> None:
    """Prints a line of a result on stdout."""
    _write(sys.stdout, text)


def print_note(text: str) -> None:
    """Prints a line about what happens on stderr, so that stdout holds results only."""
    # Nobody listening, a closed terminal or a log on a full disk is no reason for a run to end.
    with contextlib.suppress(OSError):
        _write(sys.stderr, redacted(text))
        sys.stderr.flush()


def print_error(message: str) -> None:
    """Prints an error on stderr, in red where there is a terminal."""
    text = f"error: {message}"
    if sys.stderr.isatty() and not os.environ.get("NO_COLOR"):
        text = f"\x1b[31merror:\x1b[0m {safe(redacted(message))}"
        sys.stderr.write(text + "\n")
        return
    _write(sys.stderr, redacted(text))


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]], right: Sequence[int] = ()) -> None:
    """Prints a table on stdout: drawn where there is a terminal, aligned words elsewhere.

    Args:
        columns: Headings.
        rows: Cells.
        right: Indices of the columns that are set to the right.
    """
    cells = [[safe(cell).replace("\n", " ") for cell in row] for row in rows]
    if sys.stdout.isatty():
        _print_rich(columns, cells, right)
        return
    widths = [max(len(row[place]) for row in [list(columns), *cells]) for place in range(len(columns))]
    for row in [list(columns), *cells]:
        words = [
            cell.rjust(width) if place in right else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        print_line("  ".join(words).rstrip())


def safe(text: str) -> str:
    """Returns `text` with control characters shown by their number, so that data cannot drive the terminal."""
    return _CONTROL.sub(lambda match: f"\\x{ord(match[0]):02x}", text)


def _print_rich(columns: Sequence[str], cells: list[list[str]], right: Sequence[int]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for place, name in enumerate(columns):
        table.add_column(name, justify="right" if place in right else "left", overflow="fold")
    for row in cells:
        table.add_row(*(Text(cell) for cell in row))
    Console(highlight=False).print(table)


def _write(stream: Any, text: str) -> None:
    encoding = stream.encoding or "utf-8"
    clean = "\n".join(safe(line) for line in text.split("\n"))
    stream.write(clean.encode(encoding, "backslashreplace").decode(encoding) + "\n")


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    return value if value is None or isinstance(value, str | int) else str(value)
