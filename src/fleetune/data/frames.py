"""Keeps data frames in files that are named by what they hold, so that none is written over by another."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fleetune.data.files import ROWS_AT_ONCE
from fleetune.data.writing import make_folder, write_whole
from fleetune.errors import DataError

OLD_NAME = "texts.parquet"
"""What earlier runs called the file, whatever it held."""
DIGITS = 12


def keep_frame(frame: Any, folder: Path) -> Path:
    """Returns the Parquet file in `folder` that holds a data frame; it is written if it is not there, or not whole.

    Args:
        frame: A data frame of pandas; its index is left out.
        folder: Made if absent, with those above it.

    Raises:
        DataError: If Parquet has no place for a column.
        OSError: If the file cannot be written.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.Table.from_pandas(frame, preserve_index=False)
        content = _content(table.schema.names, table.to_batches(max_chunksize=ROWS_AT_ONCE))
        # A run that began with the old name goes on with it.
        path, old = folder / f"texts-{content[:DIGITS]}.parquet", folder / OLD_NAME
        if _holds(old, content):
            return old
        if not _holds(path, content):
            make_folder(folder, above=len(folder.parents))
            write_whole(path, lambda beside: pyarrow.parquet.write_table(table, beside))
    except (pyarrow.ArrowException, ValueError, TypeError, OverflowError) as error:
        # The last argument names the column, where there are several.
        said = (str(error.args[-1] if error.args else error).strip().splitlines() or [type(error).__name__])[0]
        raise DataError(
            f"the data frame cannot be kept as Parquet: {said.rstrip('.')}.\n"
            "Leave out the columns that are not needed, or turn their values into text, such as by astype(str)"
        ) from None
    return path


def _content(names: list[str], batches: Iterable[Any]) -> str:
    """Returns a hash of columns' names and values: not of a file's bytes, which change with the library's version."""
    digest = hashlib.sha256(repr(names).encode())
    for batch in batches:
        for row in zip(*(column.to_pylist() for column in batch.columns), strict=True):
            digest.update(f"{row!r}\n".encode())
    return digest.hexdigest()


def _holds(path: Path, content: str) -> bool:
    """Returns whether the file is there, whole, and holds that content."""
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            return _content(file.schema_arrow.names, file.iter_batches(ROWS_AT_ONCE)) == content
    except (pyarrow.ArrowException, OSError, ValueError):
        return False
