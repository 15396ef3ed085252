"""Files that are written whole or not at all."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

CRLF = "\r\n"
PARTIAL = ".partial"
ROWS_IN_GROUP = 1 << 16
_FORMULA = r"=+\-@|%\uff1d\uff0b\uff0d\uff20"
"""A spreadsheet takes text that begins so for a formula, or for a command; the last are the full-width signs."""
_BEFORE_FORMULA = re.compile(
    # An apostrophe that is there gets another: whoever takes one away has the text again.
    rf"^(?=[ \u00a0\ufeff']*[\t\r\n{_FORMULA}])|(?<=[;\t\r\n])(?=[ \u00a0\ufeff'\"]*[{_FORMULA}])"
)
"""Where a cell begins like a formula: the file's, or one of a spreadsheet that splits lines at semicolons or tabs."""


def harmless(cell: str) -> str:
    """Returns a cell of a CSV file, with an apostrophe before what a spreadsheet would take for a formula.

    That is at its beginning, and after semicolons, tabs and line breaks in it: where a spreadsheet splits at semicolons
    or tabs, quotes begin no cell there, and what follows does.

    A NUL byte, at which some readers end a cell, is shown as an escape.
    """
    return _BEFORE_FORMULA.sub("'", cell.replace("\0", "\\0"))


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
    """Writes a file by `write` beside `path` and puts it in its place in one step; it is on disk then."""
    # Two processes that write the same file write it beside each other.
    beside = path.with_name(f"{path.name}.{os.getpid()}{PARTIAL}")
    with removed_on_failure(beside):
        write(beside)
        with beside.open("r+b") as file:
            os.fsync(file.fileno())
    put_in_place(beside, path)


def write_bytes(path: Path, data: bytes) -> None:
    """Writes a file whole or not at all; it is on disk then."""
    write_whole(path, lambda beside: _fill(beside, data))


def write_row_groups(path: Path, schema: Any, groups: Iterable[Sequence[Any]]) -> None:
    """Writes a Parquet file whole or not at all, and onto the disk; only one group of its rows is in memory at a time.

    Args:
        path: The file, in a folder that is there.
        schema: Its columns, as pyarrow has them.
        groups: The columns of each group of rows, as arrays.
    """
    import pyarrow
    import pyarrow.parquet

    beside = path.with_name(path.name + PARTIAL)
    with removed_on_failure(beside), beside.open("wb") as file:
        with pyarrow.parquet.ParquetWriter(file, schema, compression="zstd") as writer:
            for columns in groups:
                writer.write_table(pyarrow.Table.from_arrays(list(columns), schema=schema))
        file.flush()
        os.fsync(file.fileno())
    put_in_place(beside, path)


@contextmanager
def removed_on_failure(path: Path) -> Iterator[None]:
    """Removes a file if the block raises: on a full disk, what is half written takes the room of what follows."""
    try:
        yield
    except BaseException:
        with suppress(OSError):
            path.unlink(missing_ok=True)
        raise


def put_in_place(beside: Path, place: Path) -> None:
    """Renames a file that is on disk, and whose name is on disk then, too."""
    with removed_on_failure(beside):
        beside.replace(place)
    sync_folder(place.parent)


def sync_folder(folder: Path) -> None:
    """Waits until the names in a folder are on disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(path: Path, above: int = 2) -> None:
    """Makes a folder and those above it; they are on disk then.

    Args:
        path: The folder.
        above: How many above it may be missing: a run's folder that was moved away is not made anew where it was.

    Raises:
        FileNotFoundError: If more is missing.
    """
    for folder in reversed([folder for folder in (path, *path.parents[:above]) if not folder.exists()]):
        folder.mkdir(exist_ok=True)
        sync_folder(folder.parent)


def sha256_of(path: Path) -> str:
    """Returns the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def runs(rows: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """Yields `rows` in as few parts as make groups of rows for `write_row_groups`, none for no rows."""
    return (rows[start : start + ROWS_IN_GROUP] for start in range(0, len(rows), ROWS_IN_GROUP))


def write_text(path: Path, text: str) -> None:
    """Writes UTF-8 text whole or not at all; what UTF-8 cannot hold is written as an escape."""
    write_bytes(path, text.encode("utf-8", "backslashreplace"))


def write_json(path: Path, value: Any) -> None:
    """Writes JSON whole or not at all."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def _fill(path: Path, data: bytes) -> None:
    path.write_bytes(data)
