"""Labelled files with faults that are known beforehand, and what reading them must give."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from fleetune.data.config import DataConfig
from fleetune.data.gate import TooManyBadRowsError
from fleetune.data.prepare import Prepared, prepare
from fleetune.errors import FleetuneError

LABELS = ("positive", "negative", "neutral")
FIELD_LIMIT = 300
GOOD = ""

# Characters that naive readers take for line ends, separators, quotes or missing values are likelier than others.
LETTERS = "ab \t,;|'\"\n\r\x0b\x0c\x1c\x85\u2028\u00a0\ufeffé漢😀=+-@0.\\"
TEXTS = st.one_of(
    st.sampled_from(
        ["NA", "null", "nan", "None", "0", "-1.5e3", "=1+1", '"', '""', ",", '","', "\ufeffx", "a\nb", "a\r\nb"]
    ),
    st.text(LETTERS, min_size=1, max_size=12),
    st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=20),
).filter(lambda text: text.strip() and text[0] not in "\r\n")


@dataclass(frozen=True)
class Row:
    """One record of a file to be written.

    Attributes:
        text: Its text as it must be read.
        label: Its label.
        fault: Beginning of the reason for which it must be quarantined; nothing where it is good.
        raw: What stands in the file, if it is not the plain record.
    """

    text: str
    label: str
    fault: str = GOOD
    raw: str | None = None


@dataclass
class LabelledFile:
    """Records and the way they are written."""

    rows: list[Row]
    delimiter: str = ","
    line_end: str = "\n"
    quote_all: bool = False
    blank_lines: bool = False
    last_line_end: bool = True
    encoding: str = "utf-8"
    header: tuple[str, str] = ("text", "label")
    lines: list[int] = field(default_factory=list)

    def content(self) -> bytes:
        """Returns the file, and notes the line of each record in `lines`."""
        parts = [self._record(*self.header)]
        self.lines = []
        line = 2
        for row in self.rows:
            if self.blank_lines and len(self.lines) % 3 == 1:
                parts.append("")
                line += 1
            raw = self._record(row.text, row.label) if row.raw is None else row.raw.replace("␟", self.delimiter)
            self.lines.append(line)
            line += 1 + count_line_ends(raw)
            parts.append(raw)
        text = self.line_end.join(parts) + (self.line_end if self.last_line_end else "")
        return text.encode(self.encoding)

    @property
    def good(self) -> list[Row]:
        return [row for row in self.rows if row.fault == GOOD]

    @property
    def bad_places(self) -> list[tuple[int, str]]:
        return [(line, row.fault) for line, row in zip(self.lines, self.rows, strict=True) if row.fault != GOOD]

    def _record(self, *fields: str) -> str:
        return self.delimiter.join(self._field(value) for value in fields)

    def _field(self, value: str) -> str:
        special = any(mark in value for mark in (self.delimiter, '"', "\n", "\r"))
        return '"' + value.replace('"', '""') + '"' if self.quote_all or special else value


def count_line_ends(text: str) -> int:
    return text.replace("\r\n", "\n").replace("\r", "\n").count("\n")


def good_rows(texts: st.SearchStrategy[str] = TEXTS) -> st.SearchStrategy[Row]:
    return st.builds(Row, texts, st.sampled_from(LABELS))


PLAIN = st.text("abcdefgh ", min_size=1, max_size=10).filter(str.strip)
BLANKS = st.sampled_from(["", "  ", '""', "\u2003"])
BAD_ROWS = st.one_of(
    st.builds(lambda text: Row(text, "", "ragged row", raw=text), PLAIN),
    st.builds(lambda text: Row(text, "", "ragged row", raw=f"{text}␟positive␟more"), PLAIN),
    st.builds(lambda text: Row(text, "", "ragged row", raw=f'"{text}\nand a line"␟positive␟'), PLAIN),
    st.builds(lambda text: Row(text, "", "NUL byte", raw=f"{text}\0␟positive"), PLAIN),
    st.builds(lambda text: Row(text, "", "unbalanced quote", raw=f'"{text}␟positive'), PLAIN),
    st.builds(lambda text: Row(text, "", "unbalanced quote", raw=f'{text}␟"negative'), PLAIN),
    st.builds(lambda text: Row(text, "", "unbalanced quote", raw=f'"{text}"{text}␟negative'), PLAIN),
    st.builds(lambda blank: Row("", "", "empty text", raw=f"{blank}␟positive"), BLANKS),
    st.builds(lambda text, blank: Row("", "", "missing label", raw=f"{text}␟{blank}"), PLAIN, BLANKS),
    st.builds(lambda text: Row(text, "", "unknown label", raw=f"{text}␟positve"), PLAIN),
    st.builds(lambda text: Row(text, "", "field over", raw=f"{text * (FIELD_LIMIT + 1)}␟positive"), PLAIN),
    st.builds(lambda text: Row(text, "", "field over", raw=f'"{text * FIELD_LIMIT}\n"␟positive'), PLAIN),
)  # fmt: skip


def read(path: Path, **settings: Any) -> Prepared | FleetuneError:
    """Returns the prepared data or the error that a user would see; anything else fails the test."""
    config = DataConfig(
        **{"path": path, "labels": list(LABELS), "max_field_characters": FIELD_LIMIT, "max_bad_rows": 10**6, **settings}
    )
    try:
        return prepare(config)
    except FleetuneError as error:
        assert_clear(error)
        return error


def assert_clear(error: FleetuneError) -> None:
    """Fails unless the message is short and made for people."""
    message = str(error)
    assert message
    assert message.count("\n") <= 2
    assert len(message) <= 1500
    assert "Traceback" not in message
    assert error.exit_code == 2


def assert_conserved(prepared: Prepared) -> None:
    """Fails unless every accepted text is in exactly one split and the counts add up."""
    audit, dataset = prepared.audit, prepared.dataset
    assert audit.records == audit.accepted + audit.quarantined
    assert audit.quarantined == len(prepared.quarantine)
    in_splits = sorted(int(index) for indices in dataset.splits.values() for index in indices)
    assert in_splits == list(range(len(dataset)))
    assert audit.train + audit.validation + audit.test == audit.accepted - audit.sampled_out - audit.dropped


def assert_read_right(result: Prepared | FleetuneError, file: LabelledFile) -> None:
    """Fails unless `result` is exactly what the file's makers know of it."""
    seen = {row.label for row in file.good}
    if not file.good or len(seen) == 1 or seen != set(LABELS):
        assert isinstance(result, FleetuneError)
        return
    assert isinstance(result, Prepared), result
    assert_conserved(result)
    dataset = result.dataset
    assert dataset.texts == [row.text for row in file.good]
    assert [dataset.label_names[index] for index in dataset.labels] == [row.label for row in file.good]
    good_lines = [line for line, row in zip(file.lines, file.rows, strict=True) if row.fault == GOOD]
    assert dataset.lines.tolist() == good_lines
    assert [
        (bad.line, bad.reason[: len(fault)]) for bad, (_, fault) in zip(result.quarantine, file.bad_places, strict=True)
    ] == (file.bad_places)


def assert_gate_holds(path: Path, number: int, **settings: Any) -> None:
    """Fails unless one bad row less than there are makes the gate close, with the whole list at hand."""
    if not number:
        return
    result = read(path, max_bad_rows=number - 1, **settings)
    assert isinstance(result, TooManyBadRowsError)
    assert len(result.quarantine) == number
    assert f"max_bad_rows = {number}" in str(result)


def write_jsonl(path: Path, values: list[Any]) -> Path:
    path.write_text("".join(json.dumps(value) + "\n" for value in values), encoding="utf-8")
    return path
