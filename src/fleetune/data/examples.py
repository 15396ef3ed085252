"""From cells to texts with labels as read: rows are filtered, and what cannot be used is quarantined."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from fleetune.data.config import BOUND, DataConfig
from fleetune.data.slices import slice_value
from fleetune.data.table import Cell, Quarantine, QuarantinedRecord, Table, excerpt

RawLabel = str | tuple[str, ...]

EMPTY_TEXT = "empty text"
MISSING_LABEL = "missing label"
UNKNOWN_LABEL = "unknown label"
NUL = "NUL byte"

ZERO_OR_ONE = {"0": False, "1": True, "0.0": False, "1.0": True, "false": False, "true": True}


@dataclass
class Examples:
    """The usable records of one source.

    Attributes:
        source: Name of the source.
        texts: First text of each record.
        pairs: Second text of each record; empty where texts are single.
        labels: What stands in the label cell: one label, or a tuple of labels where multi-label.
        lines: Line of each record.
        quarantine: Records that cannot be used.
        filtered: Number of records that `where` leaves out.
        class_names: Names of integer labels, where the source declares them.
        slices: By column, what stands there of each record.
    """

    source: str
    texts: list[str] = field(default_factory=list)
    pairs: list[str] = field(default_factory=list)
    labels: list[RawLabel] = field(default_factory=list)
    lines: list[int] = field(default_factory=list)
    quarantine: Quarantine = field(default_factory=Quarantine)
    filtered: int = 0
    class_names: list[str] | None = None
    slices: dict[str, list[str]] = field(default_factory=dict)


def examples_of(table: Table, config: DataConfig) -> Examples:
    """Returns the usable records of a table, and why the others are none."""
    slices: dict[str, list[str]] = {name: [] for name in config.slices or ()}
    result = Examples(table.source, quarantine=table.quarantine, class_names=table.class_names, slices=slices)
    conditions = [(name, table.columns[name], _condition(wanted)) for name, wanted in config.where.items()]
    texts = [table.columns[name] for name in config.text_columns]
    read_label = _label_reader(table, config)
    for row, line in enumerate(table.lines):
        problem = _filter(row, conditions)
        if problem is None:
            result.filtered += 1
            continue
        problem = problem or next(filter(None, (_text_problem(column[row]) for column in texts)), "")
        label, label_problem = read_label(row) if not problem else ("", "")
        if problem or label_problem:
            shown = " | ".join(str(column[row]) for column in texts)
            result.quarantine.append(
                QuarantinedRecord(table.source, line, problem or label_problem, excerpt(shown[:1000]))
            )
            continue
        result.texts.append(_as_text(texts[0][row]) or "")
        if len(texts) == 2:
            result.pairs.append(_as_text(texts[1][row]) or "")
        result.labels.append(label)
        result.lines.append(line)
        for name, values in slices.items():
            values.append(slice_value(table.columns[name][row]))
    return result


def _filter(row: int, conditions: list[tuple[str, list[Cell], Callable[[str], bool]]]) -> str | None:
    """Returns None where `where` leaves the row out, else what is wrong with it, else nothing."""
    for name, column, condition in conditions:
        value = (_as_text(column[row]) or "").strip()
        if not value:
            return None
        try:
            kept = condition(value)
        except ValueError:
            return f"column {name!r} has {value[:40]!r} where [data] where needs a number"
        if not kept:
            return None
    return ""


def _condition(wanted: str | bool | int | float) -> Callable[[str], bool]:
    bound = BOUND.fullmatch(wanted) if isinstance(wanted, str) else None
    if bound is None:
        target = _as_text(wanted) or ""
        return lambda value: _equal(value, target)
    sign, operand = bound[1], bound[2].strip("\"'")
    if sign == "==":
        return lambda value: _equal(value, operand)
    if sign == "!=":
        return lambda value: not _equal(value, operand)
    limit = float(operand)
    return {
        ">=": lambda value: float(value) >= limit,
        "<=": lambda value: float(value) <= limit,
        ">": lambda value: float(value) > limit,
        "<": lambda value: float(value) < limit,
    }[sign]


def _equal(value: str, wanted: str) -> bool:
    if value == wanted:
        return True
    if wanted in ("true", "false"):
        return ZERO_OR_ONE.get(value.casefold()) == (wanted == "true")
    try:
        return float(value) == float(wanted)
    except ValueError:
        return False


def _text_problem(cell: Cell) -> str:
    if isinstance(cell, str):
        if not cell or cell.isspace():
            return EMPTY_TEXT
        if "\0" in cell:
            return NUL
        return "" if cell.isascii() or _encodable(cell) else "half of a surrogate pair"
    if _as_text(cell) is None:
        return EMPTY_TEXT if cell is None or isinstance(cell, float) else f"the text is a {type(cell).__name__}"
    return ""


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _as_text(cell: object) -> str | None:
    """Returns a cell as a CSV file would have it; None where it holds no single value."""
    if isinstance(cell, str):
        return cell
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return None
    if isinstance(cell, bool):
        return "true" if cell else "false"
    if isinstance(cell, list | dict | tuple | bytes):
        return None
    return str(cell)


def _label_reader(table: Table, config: DataConfig) -> Callable[[int], tuple[RawLabel, str]]:
    """Returns a function from a row to its label as read and what is wrong with it."""
    if not table.labelled:
        return lambda row: ("", "")
    if isinstance(config.label, list):
        return _flag_reader({name: table.columns[name] for name in config.label})
    cells, separator = table.columns[config.label], config.label_separator

    def read(row: int) -> tuple[RawLabel, str]:
        cell = cells[row]
        if isinstance(cell, list):
            return _several(cell)
        value = (_as_text(cell) or "").strip()
        if not value:
            kind = type(cell).__name__
            return "", f"{UNKNOWN_LABEL}: a {kind}" if isinstance(cell, dict | bytes) else MISSING_LABEL
        if "\0" in value or not (value.isascii() or _encodable(value)):
            return "", f"{UNKNOWN_LABEL} {value[:40]!a}"
        if separator is None:
            return value, ""
        parts = tuple(dict.fromkeys(part.strip() for part in value.split(separator) if part.strip()))
        return parts, "" if parts else MISSING_LABEL

    return read


def _several(cell: list[object]) -> tuple[RawLabel, str]:
    parts = [(_as_text(item) or "").strip() for item in cell]
    if not all(parts):
        return "", f"{UNKNOWN_LABEL}: the list {str(cell)[:60]} has an empty one"
    return tuple(dict.fromkeys(parts)), ""


def _flag_reader(columns: dict[str, list[Cell]]) -> Callable[[int], tuple[RawLabel, str]]:
    def read(row: int) -> tuple[RawLabel, str]:
        chosen = []
        for name, cells in columns.items():
            value = (_as_text(cells[row]) or "").strip()
            flag = ZERO_OR_ONE.get(value.casefold())
            if flag is None:
                return (
                    "",
                    f"{UNKNOWN_LABEL}: column {name!r} has {value[:40]!r}, not 0 or 1" if value else MISSING_LABEL,
                )
            if flag:
                chosen.append(name)
        return tuple(chosen), ""

    return read
