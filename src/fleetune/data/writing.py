"""Files that are written whole or not at all."""

from __future__ import annotations

import csv
import io
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

CRLF = "\r\n"
_FORMULA_SIGNS = ("=", "+", "-", "@", "\t", "\r", "\n", "|", "%", "\uff1d", "\uff0b", "\uff0d", "\uff20")
"""A spreadsheet takes text that begins so for a formula, or for a command; the last are the full-width signs."""


def harmless(cell: str) -> str:
    """Returns a cell of a CSV file, with an apostrophe before it where a spreadsheet would take it for a formula.

    A NUL byte, at which some readers end a cell, is shown as an escape.
    """
    cell = cell.replace("\0", "\\0")
    return f"'{cell}" if cell.lstrip(" \u00a0\ufeff").startswith(_FORMULA_SIGNS) else cell


def csv_text(rows: Iterable[Sequence[object]]) -> str:
    """Returns rows as CSV whose lines end in a line feed; a cell with a line break of any kind is quoted."""
    lines = []
    for row in rows:
        out = io.StringIO(newline="")
        # The writer quotes the line breaks that are its own alone: a bare carriage return would begin a new record.
        csv.writer(out, lineterminator=CRLF).writerow(row)
        lines.append(out.getvalue().removesuffix(CRLF))
    return "".join(f"{line}\n" for line in lines)


def write_whole(path: Path, write: Callable[[Path], None]) -> None:
    """Writes a file by `write` beside `path` and puts it in its place in one step."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        temporary.chmod(0o644)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Writes UTF-8 text whole or not at all; what UTF-8 cannot hold is written as an escape."""
    write_whole(path, lambda temporary: _write_bytes(temporary, text.encode("utf-8", "backslashreplace")))


def write_json(path: Path, value: Any) -> None:
    """Writes JSON whole or not at all."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def _write_bytes(path: Path, data: bytes) -> None:
    path.write_bytes(data)
