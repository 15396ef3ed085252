"""Files to tables: CSV, JSONL and Parquet, each with the columns that the recipe names."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from fleetune.data.config import DataConfig
from fleetune.data.csv_reader import CsvText, Dialect, find_dialect
from fleetune.data.encoding import LINE_END, Decoded, read_text
from fleetune.data.table import Cell, QuarantinedRecord, Table, check_columns, excerpt
from fleetune.errors import DataError

SUFFIXES = {
    ".csv": "csv", ".tsv": "csv", ".tab": "csv", ".txt": "csv",
    ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl",
    ".parquet": "parquet", ".pq": "parquet",
}  # fmt: skip
COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"PK\x03\x04": "zip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
}
PARQUET_MAGIC = b"PAR1"
ROWS_AT_ONCE = 10_000
JSON_STRING = re.compile(r'"(?:[^"\\]++|\\.)*+"', re.DOTALL)
SHORT_ROW, LONG_ROW = 1_000, 200_000
"""Characters of a JSONL row: up to the one any value is kept, past the other values are counted before any is made."""
MOST_VALUES = 20_000
MOST_LABELS = 10_000
MOST_COLUMNS = 10_000


def read_file(path: Path, source: str, config: DataConfig) -> Table:
    """Returns the table of one file, with the columns that `config` names.

    Raises:
        DataError: If the file cannot be read, or lacks a column.
    """
    form = find_format(path) if config.format == "auto" else config.format
    if form == "parquet":
        return _read_parquet(path, source, config)
    decoded = read_text(path, source, config.encoding, config.encoding_errors)
    table = _read_jsonl(decoded, source, config) if form == "jsonl" else _read_csv(path, decoded, source, config)
    if decoded.bad_lines:
        table.notes.append(f"{source}: undecodable bytes in {len(decoded.bad_lines):,} lines were replaced by U+FFFD")
    return table


def find_format(path: Path) -> str:
    """Returns `csv`, `jsonl` or `parquet`, by the first bytes and by the file's name.

    Raises:
        DataError: If the file is absent, not readable, empty or compressed.
    """
    try:
        with path.open("rb") as file:
            head = file.read(4096)
    except FileNotFoundError:
        raise DataError(f"{path} does not exist; check the path in [data] (it is relative to the recipe).") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.") from None
    if not head:
        raise DataError(f"{path} is empty; expected a header and labelled texts.")
    for magic, name in COMPRESSED.items():
        if head.startswith(magic):
            raise DataError(f"{path} is compressed ({name}); unpack it and name the file inside.")
    if head.startswith(PARQUET_MAGIC):
        return "parquet"
    known = SUFFIXES.get(path.suffix.lower())
    if known is not None:
        return known
    return "jsonl" if head.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"{") else "csv"


def delimiter_hint(path: Path) -> str:
    """Returns the delimiter that the file's name suggests, or nothing."""
    return {".tsv": "\t", ".tab": "\t", ".csv": ","}.get(path.suffix.lower(), "")


def _read_csv(path: Path, decoded: Decoded, source: str, config: DataConfig) -> Table:
    if config.delimiter is not None:
        dialect = Dialect(config.delimiter, config.quote, config.escape or "")
    else:
        hint = delimiter_hint(path)
        dialect = find_dialect(decoded.text, config.columns, config.quote, config.escape or "", hint)
    parsed = CsvText(decoded.text, dialect)
    header = parsed.header
    if header is None:
        raise DataError(f"{source} is empty; expected a header and labelled texts.")
    if header.problem:
        raise DataError(f"{source}:{header.line}: the header cannot be read ({header.problem}).")
    if "\0" in decoded.text[header.start : header.end]:
        raise DataError(f"{source}:{header.line}: the header has a NUL byte; if the file is UTF-16, type encoding.")
    check_columns(source, header.fields, config.columns)
    return _table_of_records(parsed, header.fields, source, config)


def _table_of_records(parsed: CsvText, header: list[str], source: str, config: DataConfig) -> Table:
    places = {name: header.index(name) for name in config.columns}
    table = Table(source, {name: [] for name in places})
    few = {*config.label_columns, *(config.slices or ())} - set(config.text_columns)
    appends = [(table.columns[name].append, place, name in few) for name, place in places.items()]
    limit = config.max_field_characters
    label = config.label_columns[0]
    # A label or slice is one string in memory, however many records have it.
    same: dict[str, str] = {}
    for record in parsed.records(None if label in config.text_columns else places[label], config.labels or ()):
        problem = record.problem
        if record.end - record.start > limit and not problem:
            longest = max(map(len, record.fields))
            problem = _too_long(longest, limit) if longest > limit else ""
        if problem:
            begin = parsed.text[record.start : min(record.end, record.start + 1000)]
            table.quarantine.append(QuarantinedRecord(source, record.line, problem, excerpt(begin)))
            continue
        table.lines.append(record.line)
        for append, place, is_one_of_few in appends:
            cell = record.fields[place]
            append(same.setdefault(cell, cell) if is_one_of_few else cell)
    return table


def _too_long(characters: int, limit: int) -> str:
    return f"field over max_field_characters: {characters:,} characters, the limit is {limit:,}"


def _read_jsonl(decoded: Decoded, source: str, config: DataConfig) -> Table:
    if decoded.text.lstrip().startswith("[") and decoded.text.rstrip().endswith("]"):
        raise DataError(f"{source} is one JSON list; expected JSONL, which has one JSON object a line.")
    table = Table(source, {name: [] for name in config.columns})
    seen: dict[str, None] = {}
    for number, row in enumerate(_rows(decoded.text), start=1):
        if not row.strip():
            continue
        record = _json_object(row)
        problem = record if isinstance(record, str) else _long_field(record, config)
        if isinstance(record, str) or problem:
            table.quarantine.append(QuarantinedRecord(source, number, problem, excerpt(row)))
            continue
        if len(seen) < MOST_COLUMNS:
            seen.update(dict.fromkeys(record))
        table.lines.append(number)
        for name, cells in table.columns.items():
            if name in record:
                seen[name] = None
            cells.append(_bounded(record.get(name), len(row)))
    if not table.lines and not table.quarantine:
        raise DataError(f"{source} is empty; expected one JSON object a line.")
    if table.lines:
        check_columns(source, list(seen), config.columns)
    return table


def _rows(text: str) -> Iterator[str]:
    """Yields the lines of a text; all at once would be much of what short ones take."""
    position = 0
    for end in LINE_END.finditer(text):
        yield text[position : end.start()]
        position = end.end()
    yield text[position:]


def _json_object(row: str) -> dict[str, Any] | str:
    """Returns the object of one line, or what is wrong with it."""
    if len(row) > LONG_ROW:
        # The values of such a row would take up to thirty times its size; nothing but texts and labels is wanted.
        structure = JSON_STRING.sub("", row)
        if structure.lstrip().startswith("["):
            return "not a JSON object but a list"
        if structure.count(",") + structure.count("[") + structure.count("{") > MOST_VALUES:
            return f"over {MOST_VALUES:,} values in one record"
        del structure
    try:
        value = json.loads(row)
    except json.JSONDecodeError as error:
        if "\0" in row:
            return "NUL byte"
        return f"malformed JSON: {error.msg} at character {error.pos + 1}"
    except (ValueError, RecursionError) as error:
        return f"malformed JSON: {type(error).__name__}"
    if not isinstance(value, dict):
        return f"not a JSON object but a {type(value).__name__}"
    return value


def _bounded(cell: Cell, characters: int) -> Cell:
    """Returns a cell of a row with that many characters; of nested values, which no column may hold, the beginning."""
    if not isinstance(cell, dict | list) or characters <= SHORT_ROW:
        return cell
    if isinstance(cell, dict):
        return {"": repr(cell)[:SHORT_ROW]}
    if len(cell) <= MOST_LABELS and not any(isinstance(item, dict | list) for item in cell):
        return cell
    # The empty entry has it refused as a list of labels, as it would have been.
    return [repr(cell)[:SHORT_ROW], None]


def _long_field(record: dict[str, Any], config: DataConfig) -> str:
    longest = max((len(value) for value in record.values() if isinstance(value, str)), default=0)
    limit = config.max_field_characters
    return _too_long(longest, limit) if longest > limit else ""


def _read_parquet(path: Path, source: str, config: DataConfig) -> Table:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            check_columns(source, file.schema_arrow.names, config.columns)
            table = Table(source, {name: [] for name in config.columns})
            for batch in file.iter_batches(ROWS_AT_ONCE, columns=config.columns):
                columns = {name: batch.column(name).to_pylist() for name in config.columns}
                append_rows(table, columns, config)
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        first = (str(error).splitlines() or [""])[0]
        raise DataError(f"{source} cannot be read as Parquet: {first}") from None
    return table


def append_rows(table: Table, columns: dict[str, Sequence[Cell]], config: DataConfig) -> None:
    """Adds rows of a columnar source to `table`; a row with an over-long field is quarantined."""
    limit = config.max_field_characters
    names = list(columns)
    for cells in zip(*columns.values(), strict=True):
        row = len(table.lines) + table.quarantine.number
        longest = max((len(cell) for cell in cells if isinstance(cell, str)), default=0)
        if longest > limit:
            table.quarantine.append(QuarantinedRecord(table.source, row, _too_long(longest, limit)))
            continue
        table.lines.append(row)
        for name, cell in zip(names, cells, strict=True):
            table.columns[name].append(cell)
