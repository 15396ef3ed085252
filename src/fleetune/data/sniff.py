"""A look at a data file that nobody has described yet, for a recipe that runs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fleetune.data.audit import Audit
from fleetune.data.config import DataConfig
from fleetune.data.csv_reader import CsvText, find_dialect
from fleetune.data.encoding import LINE_END, Decoded, decode, detect, guess, read_text
from fleetune.data.files import delimiter_hint, find_format
from fleetune.data.prepare import prepare
from fleetune.data.profile import ColumnProfile, guess_label, guess_text, profile_column
from fleetune.data.table import Cell, list_columns
from fleetune.errors import DataError

PROFILED_ROWS = 20_000
NO_LIMIT = 1_000_000_000
MANY_TEXTS, FIRST_SAMPLE = 5_000, 3_000
TOKENS_A_WORD = 1.4
TOKEN_LIMITS = (64, 128, 256, 512)
CONFIDENCE_NAMES = ("confidence", "confidence_score", "score", "agreement")


@dataclass(frozen=True)
class Look:
    """What was seen in a data file.

    Attributes:
        path: The file, or folder saved by `datasets`.
        format: `csv`, `jsonl`, `parquet` or `datasets`.
        encoding: Encoding by which it was read; empty for binary formats.
        delimiter: CSV field separator; empty for other formats.
        rows: Number of records, bad ones included.
        columns: Profile of each column.
        text: Column of the text, or two that make a pair.
        label: Column of the label, or several 0/1 columns.
        settings: What `[data]` needs for this file, by key; `path` is as it was given.
        reasons: Why a setting is there, by key: a comment for the recipe.
        problems: What was met in the file, a line each.
        audit: Counts of the file read with `settings`; None where that failed, and then `problems` says why.
    """

    path: Path
    format: str
    encoding: str
    delimiter: str
    rows: int
    columns: list[ColumnProfile]
    text: str | list[str]
    label: str | list[str]
    settings: dict[str, Any]
    reasons: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    audit: Audit | None = None


@dataclass
class _Raw:
    """A file's rows before its columns are understood."""

    format: str
    rows: int
    columns: dict[str, list[Cell]]
    encoding: str = ""
    delimiter: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def look(path: Path, text: str | list[str] | None = None, label: str | list[str] | None = None) -> Look:
    """Returns what stands in a data file, and the settings with which it can be read.

    Args:
        path: A CSV, TSV, JSONL or Parquet file, or a folder saved by `datasets`.
        text: Column of the text, where it is known; else it is guessed.
        label: Column of the label, where it is known; else it is guessed.

    Raises:
        DataError: If the file cannot be read, or no column looks like text or labels.
    """
    raw = _read(path)
    profiles = [profile_column(name, cells) for name, cells in raw.columns.items()]
    text, label = _guess(path, profiles, text, label)
    settings: dict[str, Any] = {"path": path.as_posix(), "text": text, "label": label, **raw.settings}
    reasons = dict(raw.reasons)
    by_name = {profile.name: profile for profile in profiles}
    if isinstance(label, str) and label in by_name and by_name[label].separator:
        settings["label_separator"] = by_name[label].separator
        reasons["label_separator"] = "several labels stand in one cell"
    _choose_max_tokens(settings, reasons, [by_name[name] for name in _as_list(text) if name in by_name])
    problems = raw.problems + _hints(profiles, text, label)
    audit = _try(settings, reasons, problems)
    return Look(
        path,
        raw.format,
        raw.encoding,
        raw.delimiter,
        raw.rows,
        profiles,
        text,
        label,
        settings,
        reasons,
        problems,
        audit,
    )


def _guess(
    path: Path, profiles: list[ColumnProfile], text: str | list[str] | None, label: str | list[str] | None
) -> tuple[str | list[str], str | list[str]]:
    listed = list_columns([profile.name for profile in profiles])
    if text is None and label is None:
        # A column of few values may look like text in a small file: the text is chosen first only by a first guess.
        label = guess_label(profiles, guess_text(profiles))
    text = text or guess_text(profiles, label)
    if text is None:
        raise DataError(
            f"no column of {path.name} looks like text; its columns are {listed}.\nSay which: --text COLUMN."
        )
    label = label or guess_label(profiles, text)
    if label is None:
        raise DataError(
            f"no column of {path.name} looks like labels (few values that repeat); its columns are {listed}.\n"
            "Say which: --label COLUMN."
        )
    return text, label


def _choose_max_tokens(settings: dict[str, Any], reasons: dict[str, str], texts: list[ColumnProfile]) -> None:
    words = sum(profile.long_words for profile in texts)
    tokens = TOKENS_A_WORD * words + 3
    settings["max_tokens"] = next((limit for limit in TOKEN_LIMITS if tokens <= limit), TOKEN_LIMITS[-1])
    reasons["max_tokens"] = f"95 % of the texts have at most {words} words"
    if tokens > TOKEN_LIMITS[-1]:
        whole = ', "windows" reads them whole' if len(texts) == 1 else ""
        reasons["max_tokens"] += f'; long_texts = "head_tail" keeps both ends of longer texts{whole}'


def _hints(profiles: list[ColumnProfile], text: str | list[str], label: str | list[str]) -> list[str]:
    used = {*_as_list(text), *_as_list(label)}
    return [
        f"column {profile.name!r} has {profile.empty:,} empty cells in {profile.empty + profile.filled:,} rows; "
        f'where = {{ {profile.name} = ">= 0.9" }} would keep the surest'
        for profile in profiles
        if profile.name not in used and profile.numeric and profile.name.casefold() in CONFIDENCE_NAMES
    ]


def _try(settings: dict[str, Any], reasons: dict[str, str], problems: list[str]) -> Audit | None:
    """Reads the file with `settings`, and adds to them what its bad records and leaks call for."""
    try:
        config = DataConfig(**{**settings, "max_bad_rows": NO_LIMIT, "leaks": "allow"})
        audit = prepare(config, Path()).audit
    except DataError as error:
        problems.append(str(error))
        return None
    if audit.quarantined:
        settings["max_bad_rows"] = audit.quarantined
        kinds = ", ".join(f"{number:,} {kind}" for kind, number in audit.reasons.items())
        reasons["max_bad_rows"] = f"bad records are left out and listed in quarantine.csv: {kinds}"
        problems.append(f"{audit.quarantined:,} of {audit.records:,} records are bad: {kinds}")
    if audit.leaks:
        settings["leaks"] = "drop"
        reasons["leaks"] = f"{audit.leaks:,} texts of validation and test also stand in training"
        problems.append(reasons["leaks"])
    if audit.accepted > MANY_TEXTS:
        settings["sample"] = FIRST_SAMPLE
        reasons["sample"] = f"a first answer in minutes; take this line out to use all {audit.accepted:,} texts"
    if audit.duplicates:
        problems.append(f"{audit.duplicates:,} texts repeat an earlier one; they are kept on one side of the split")
    if audit.conflicts:
        problems.append(f"{audit.conflicts:,} distinct texts stand with more than one label")
    return audit


def _read(path: Path) -> _Raw:
    if path.is_dir():
        return _read_saved(path)
    form = find_format(path)
    if form == "parquet":
        return _read_parquet(path)
    settings: dict[str, Any] = {}
    reasons: dict[str, str] = {}
    problems: list[str] = []
    decoded = _decode(path, settings, reasons, problems)
    raw = _read_jsonl(decoded, path) if form == "jsonl" else _read_csv(decoded, path)
    raw.encoding, raw.settings, raw.reasons, raw.problems = decoded.encoding, settings, reasons, problems
    if raw.delimiter not in ("", ","):
        settings["delimiter"] = raw.delimiter
    return raw


def _decode(path: Path, settings: dict[str, Any], reasons: dict[str, str], problems: list[str]) -> Decoded:
    """Returns the file's text; where it is not Unicode, a likely encoding or replacement is added to the settings."""
    decoded = read_text(path, path.name, errors="replace")
    if not decoded.bad_lines:
        return decoded
    data = path.read_bytes()
    lines = f"{len(decoded.bad_lines):,} lines are not {detect(data).upper()}, the first is line {decoded.bad_lines[0]}"
    problems.append(lines)
    likely = guess(data)
    if likely is not None:
        settings["encoding"] = likely
        reasons["encoding"] = f"{lines}; {likely} fits"
        return decode(data, path.name, likely)
    settings["encoding_errors"] = "replace"
    reasons["encoding_errors"] = f"{lines}; no common encoding fits, so lost characters become U+FFFD"
    return decoded


def _read_csv(decoded: Decoded, path: Path) -> _Raw:
    dialect = find_dialect(decoded.text, [], hint=delimiter_hint(path))
    parsed = CsvText(decoded.text, dialect)
    header = parsed.header
    if header is None:
        raise DataError(f"{path} is empty; expected a header and labelled texts.")
    records = list(parsed.records())
    good = [record.fields for record in records[:PROFILED_ROWS] if not record.problem]
    columns: dict[str, list[Cell]] = {
        name: [fields[place] for fields in good] for place, name in enumerate(header.fields) if name
    }
    return _Raw("csv", len(records), columns, delimiter=dialect.delimiter)


def _read_jsonl(decoded: Decoded, path: Path) -> _Raw:
    rows = [row for row in LINE_END.split(decoded.text) if row.strip()]
    if not rows:
        raise DataError(f"{path} is empty; expected one JSON object a line.")
    if rows[0].lstrip().startswith("["):
        raise DataError(f"{path} is one JSON list; expected JSONL, which has one JSON object a line.")
    objects = []
    for row in rows[:PROFILED_ROWS]:
        try:
            value = json.loads(row)
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict):
            objects.append(value)
    names = dict.fromkeys(name for value in objects for name in value)
    return _Raw("jsonl", len(rows), {name: [value.get(name) for value in objects] for name in names})


def _read_parquet(path: Path) -> _Raw:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            rows = file.metadata.num_rows
            batch = next(file.iter_batches(PROFILED_ROWS), None)
            columns = {} if batch is None else batch.to_pydict()
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as Parquet: {(str(error).splitlines() or [''])[0]}") from None
    return _Raw("parquet", rows, columns)


def _read_saved(path: Path) -> _Raw:
    from fleetune.data.hub import is_saved_folder, load_saved

    if not is_saved_folder(path):
        raise DataError(f"{path} is a folder, but not one saved by datasets; name a data file.")
    loaded = load_saved(path)
    first = next(iter(loaded.values())) if isinstance(loaded, Mapping) else loaded
    rows = sum(map(len, loaded.values())) if isinstance(loaded, Mapping) else len(loaded)
    columns = dict(first.with_format(None)[:PROFILED_ROWS])
    return _Raw("datasets", rows, columns)


def _as_list(names: str | list[str]) -> list[str]:
    return [names] if isinstance(names, str) else names
