"""Reads unlabelled texts from a file, for prediction."""

from __future__ import annotations

from pathlib import Path

from fleetune.data.config import DataConfig
from fleetune.data.encoding import read_text
from fleetune.data.files import read_file
from fleetune.errors import DataError

Texts = list[str] | list[tuple[str, str]]
LINE_SUFFIXES = (".txt", "")


def read_texts(path: Path, columns: list[str] | None = None) -> Texts:
    """Returns the texts of a file in order: one a line of a `.txt` file, else one a record; pairs for two columns.

    Args:
        path: A `.txt`, CSV, TSV, JSONL or Parquet file.
        columns: Column of the text, or two that make pairs; `text` if absent.

    Raises:
        DataError: If the file or a record of it cannot be read, or a column is absent.
    """
    if path.suffix.lower() in LINE_SUFFIXES and columns is None:
        if not path.is_file():
            raise DataError(f"{path} does not exist")
        return [line for line in read_text(path, path.name, "auto", "strict").text.splitlines() if line.strip()]
    if columns is not None and len(columns) > 2:
        raise DataError(f"--text takes one column, or two that make pairs; got {len(columns)}")
    names = columns or ["text"]
    config = DataConfig(path=path, text=names if len(names) > 1 else names[0], label=names[0])
    try:
        table = read_file(path, path.name, config)
    except DataError as error:
        first = str(error).splitlines()[0]
        raise DataError(f"{first}\nType: --text COLUMN, with the column that holds the texts") from None
    if table.quarantine:
        bad = table.quarantine.number
        raise DataError(f"{bad:,} records of {path} cannot be read: {table.quarantine[0]}\nMend them first")
    cells = [["" if cell is None else str(cell) for cell in table.columns[name]] for name in names]
    return list(zip(*cells, strict=True)) if len(names) == 2 else cells[0]
