"""CSV, read so that no record is lost: each one is either split into fields or reported with its line and the reason.

The standard library's reader takes a stray quotation mark as the beginning of a field that swallows the rest of the
file. This one takes it as one bad record, and goes on with the next line.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

DELIMITERS = (",", "\t", ";", "|")
LINE = re.compile(r"[^\r\n]*+")
LINE_END = re.compile(r"\r\n|\r|\n")
DETECTION_RECORDS = 50
DETECTION_CHARACTERS = 1_000_000

RAGGED = "ragged row"
UNBALANCED = "unbalanced quote"
NUL = "NUL byte"


@dataclass(frozen=True)
class Dialect:
    """How a CSV file is written; `quote` and `escape` are empty where the file has none."""

    delimiter: str = ","
    quote: str = '"'
    escape: str = ""
    skip_space: bool = False

    @cached_property
    def closing(self) -> re.Pattern[str]:
        """Matches the rest of a quoted field up to its closing quotation mark."""
        quote, escape = re.escape(self.quote), re.escape(self.escape)
        if escape:
            return re.compile(rf"((?:[^{quote}{escape}]++|{quote}{quote}|{escape}[\s\S])*+){quote}")
        return re.compile(rf"([^{quote}]*+(?:{quote}{quote}[^{quote}]*+)*+){quote}")

    def unquoted(self, content: str) -> str:
        """Returns what stands between the quotation marks, with doubled and escaped characters made single."""
        if self.escape and self.escape in content:
            pattern = re.escape(self.escape) + r"([\s\S])|" + re.escape(self.quote * 2)
            return re.sub(pattern, lambda match: match[1] or self.quote, content)
        return content.replace(self.quote * 2, self.quote)


class Record(NamedTuple):
    """One record: its place in the text, its fields, and what is wrong with it."""

    line: int
    start: int
    end: int
    fields: list[str]
    problem: str = ""
    several_lines: bool = False


@dataclass
class CsvText:
    """A CSV file's text: its header and its records.

    Attributes:
        text: The whole text.
        dialect: How it is written.
    """

    text: str
    dialect: Dialect
    _unbalanced: set[int] = field(default_factory=set)

    @cached_property
    def header(self) -> Record | None:
        """The first record that is not an empty line; None where there is none. Names are without outer spaces."""
        first = next(self._from(*self._preamble()), None)
        if first is None:
            return None
        return first._replace(fields=[name.strip() for name in first.fields])

    def records(self, label_column: int | None = None, labels: Iterable[str] = ()) -> Iterator[Record]:
        """Returns the records after the header, made as they are asked for; empty lines are none.

        A quotation mark that opens on one line and happens to be closed many lines later is found by what lies
        between: where each of these lines alone is a record with a known label, the mark was a stray.

        Args:
            label_column: Index of the column whose values tell records from lines of a text.
            labels: Labels that are known beforehand.
        """
        # Only where there are quotation marks can one be a stray. All records at once would be most of a run's memory.
        while label_column is not None and self.dialect.quote and self.dialect.quote in self.text:
            strays = self._strays(label_column, set(labels))
            if not strays:
                break
            self._unbalanced |= strays
        return self._scan()

    def _preamble(self) -> tuple[int, int]:
        # Spreadsheets announce the separator in a line of its own.
        match = re.match(r"sep=.(?:\r\n|\r|\n)", self.text)
        return (match.end(), 2) if match else (0, 1)

    def _scan(self) -> Iterator[Record]:
        header = self.header
        if header is None:
            return
        position = _after_line_end(self.text, header.end)
        line = header.line + 1 + _line_ends(self.text, header.start, header.end)
        width, may_have_nul = len(header.fields), "\0" in self.text
        for record in self._from(position, line):
            if may_have_nul and "\0" in self.text[record.start : record.end]:
                record = record._replace(problem=NUL)
            elif not record.problem and len(record.fields) != width:
                got = f"{len(record.fields)} field{'s' if len(record.fields) != 1 else ''}"
                record = record._replace(problem=f"{RAGGED}: {got}, the header has {width}")
            yield record

    def _from(self, position: int, line: int) -> Iterator[Record]:
        """Yields the records of the text from `position`, which is the beginning of `line`."""
        text, delimiter, quote = self.text, self.dialect.delimiter, self.dialect.quote
        skip_space, size = self.dialect.skip_space, len(self.text)
        while position < size:
            row = LINE.match(text, position)[0]  # type: ignore[index]
            end = position + len(row)
            if not row:
                pass
            elif not quote or quote not in row:
                fields = row.split(delimiter)
                if skip_space:
                    fields = [value.lstrip(" ") for value in fields]
                yield Record(line, position, end, fields)
            else:
                record = self._quoted(position, end, line)
                yield record
                if record.several_lines:
                    end = record.end
                    line += _line_ends(text, position, end)
            position = _after_line_end(text, end)
            line += 1

    def _quoted(self, start: int, line_end: int, line: int) -> Record:
        """Returns the record at `start`, whose first line has a quotation mark."""
        fields, position, end = [], start, line_end
        while True:
            if self.dialect.skip_space:
                while self.text.startswith(" ", position):
                    position += 1
            if self.text.startswith(self.dialect.quote, position):
                closed = None if line in self._unbalanced else self.dialect.closing.match(self.text, position + 1)
                if closed is None:
                    return self._bad(start, line_end, line, f"{UNBALANCED}: it opens and is not closed")
                fields.append(self.dialect.unquoted(closed[1]))
                position = closed.end()
                if position > end:
                    end = position + len(LINE.match(self.text, position)[0])  # type: ignore[index]
                rest = self.text[position : position + 1]
                if position < end and rest != self.dialect.delimiter:
                    return self._bad(start, line_end, line, f"{UNBALANCED}: text follows the closing one")
            else:
                stop = self.text.find(self.dialect.delimiter, position, end)
                stop = end if stop < 0 else stop
                fields.append(self.text[position:stop])
                position = stop
            if position >= end:
                return Record(line, start, end, fields, several_lines=end > line_end)
            position += 1

    def _bad(self, start: int, end: int, line: int, problem: str) -> Record:
        return Record(line, start, end, self.text[start:end].split(self.dialect.delimiter), problem)

    def _strays(self, label_column: int, known: set[str]) -> set[int]:
        """Returns the lines of the records that swallowed other records."""
        several: list[Record] = []
        labels = set(known)
        for record in self._scan():
            if record.several_lines:
                several.append(record)
            elif not record.problem:
                labels.add(self._label(record.fields, label_column))
        labels.discard("")
        if not several:
            return set()

        def is_record(row: str) -> bool:
            return any(self._label(fields, label_column) in labels for fields in self._readings(row))

        strays = set()
        for record in several:
            rows = [row for row in LINE_END.split(self.text[record.start : record.end]) if row]
            # A record that is ragged, or has a label like no other, is no better than its first line alone.
            if all(map(is_record, rows if self._label(record.fields, label_column) in labels else rows[:1])):
                strays.add(record.line)
        return strays

    def _label(self, fields: list[str], label_column: int) -> str:
        """Returns the label of a record as wide as the header, and nothing for other records."""
        if self.header is None or len(fields) != len(self.header.fields):
            return ""
        return fields[label_column].strip(" " + self.dialect.quote)

    def _readings(self, row: str) -> list[list[str]]:
        """Returns the ways to read one line as a record: as it is, without quotes, and with a field left open."""
        alone = next(CsvText(row, self.dialect)._from(0, 1)).fields
        opened = row.find(self.dialect.delimiter + self.dialect.quote)
        left_open = [*row[:opened].split(self.dialect.delimiter), row[opened + 1 :]] if opened >= 0 else alone
        return [alone, row.split(self.dialect.delimiter), left_open]


def find_dialect(text: str, wanted: list[str], quote: str = '"', escape: str = "", hint: str = "") -> Dialect:
    """Returns the dialect under which the header has the wanted columns, and failing that the most regular one.

    Args:
        text: The file's text.
        wanted: Names of columns that must be there.
        quote: Quotation mark.
        escape: Escape character.
        hint: Delimiter that the file's name suggests.
    """
    announced = re.match(r"sep=(.)(?:\r\n|\r|\n)", text)
    if announced:
        return Dialect(announced[1], quote, escape)
    head = text[:DETECTION_CHARACTERS]
    scores = []
    for delimiter in DELIMITERS:
        part = CsvText(head, Dialect(delimiter, quote, escape))
        header = part.header
        if header is None:
            break
        names = header.fields
        rows = part._from(_after_line_end(head, header.end), 2)
        widths = [len(record.fields) for record, _ in zip(rows, range(DETECTION_RECORDS), strict=False)]
        regular = sum(width == len(names) for width in widths) / max(1, len(widths))
        found = sum(name in names for name in wanted)
        scores.append((found, len(names) > 1, regular, delimiter == hint, len(names), delimiter))
    # max keeps the first of equals, and DELIMITERS is in order of how common they are.
    best = max(scores, key=lambda score: score[:5])[5] if scores else ","
    return Dialect(best, quote, escape, _spaces_follow(head, best))


def _spaces_follow(text: str, delimiter: str) -> bool:
    first = LINE.match(text)[0]  # type: ignore[index]
    after = [part[:1] for part in first.split(delimiter)[1:]]
    return bool(after) and all(character == " " for character in after)


def _after_line_end(text: str, position: int) -> int:
    match = LINE_END.match(text, position)
    return match.end() if match else position


def _line_ends(text: str, start: int, end: int) -> int:
    return sum(1 for _ in LINE_END.finditer(text, start, end))
