"""From bytes to text: byte-order marks, UTF-16 without one, and bytes that fit no encoding."""

from __future__ import annotations

import codecs
import re
from dataclasses import dataclass
from pathlib import Path

from fleetune.errors import DataError

BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
LINE_END = re.compile(r"\r\n|\r|\n")
# A strict decoder never gives a lone surrogate, so this one marks undecodable bytes without ambiguity.
MARK = "\udc80"
SHOWN_LINES = 3
WESTERN_SHARE = 0.3


def _mark(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return MARK, error.end


codecs.register_error("fleetune.mark", _mark)


@dataclass(frozen=True)
class Decoded:
    """A file's text and how it was had.

    Attributes:
        text: The text, without byte-order mark.
        encoding: Name of the encoding used.
        bad_lines: Lines with undecodable bytes, which stand replaced by U+FFFD.
    """

    text: str
    encoding: str
    bad_lines: list[int]


def read_text(path: Path, source: str, encoding: str = "auto", errors: str = "strict") -> Decoded:
    """Returns the text of a file.

    Raises:
        DataError: If the file cannot be opened, or has undecodable bytes and `errors` is `strict`.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{path} does not exist; check the path in [data] (it is relative to the recipe).") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.") from None
    return decode(data, source, encoding, errors)


def decode(data: bytes, source: str, encoding: str = "auto", errors: str = "strict") -> Decoded:
    """Returns the text of `data`; undecodable bytes are an error with line numbers, or replaced if `errors` says so.

    Raises:
        DataError: If there are undecodable bytes and `errors` is `strict`.
    """
    name = detect(data) if encoding == "auto" else encoding
    try:
        return Decoded(_without_mark(data.decode(name)), name, [])
    except UnicodeError:
        pass
    try:
        marked = _without_mark(data.decode(name, "fleetune.mark"))
    except UnicodeError as error:
        raise DataError(f"{source} is not {name}: {error}.\nName its encoding in [data].") from None
    lines = _lines_with_mark(marked)
    if errors == "strict":
        raise DataError(_undecodable_message(data, source, name, lines))
    return Decoded(marked.replace(MARK, "\ufffd"), name, lines)


def detect(data: bytes) -> str:
    """Returns the encoding that the first bytes show: by byte-order mark, by UTF-16's zero bytes, else UTF-8."""
    for mark, name in BYTE_ORDER_MARKS:
        if data.startswith(mark):
            return name
    head = data[:4]
    if len(head) == 4:
        if head[1] == head[3] == 0 and head[0] and head[2]:
            return "utf-16-le"
        if head[0] == head[2] == 0 and head[1] and head[3]:
            return "utf-16-be"
    return "utf-8"


def guess(data: bytes) -> str | None:
    """Returns a likely encoding for bytes that are not UTF-8, None where none is likely.

    Windows-1252 leaves five bytes undefined, so text that decodes and is mostly plain letters is likely to be it.
    """
    try:
        text = data.decode("cp1252")
    except UnicodeDecodeError:
        return None
    letters = [character for character in text[:200_000] if character.isalpha()]
    accented = sum(character > "\x7f" for character in letters)
    return "cp1252" if letters and accented <= WESTERN_SHARE * len(letters) else None


def _without_mark(text: str) -> str:
    return text.removeprefix("\ufeff")


def _lines_with_mark(text: str) -> list[int]:
    return [number for number, line in enumerate(LINE_END.split(text), start=1) if MARK in line]


def _undecodable_message(data: bytes, source: str, name: str, lines: list[int]) -> str:
    first = ", ".join(str(line) for line in lines[:SHOWN_LINES]) + (", …" if len(lines) > SHOWN_LINES else "")
    count = f"{len(lines)} line{'s' if len(lines) != 1 else ''}"
    likely = guess(data)
    if likely is not None and likely != name:
        remedy = f'Type encoding = "{likely}" in [data] if that is what it is; encoding_errors = "replace" puts U+FFFD.'
    else:
        remedy = 'Name the file\'s encoding in [data], or type encoding_errors = "replace" to put U+FFFD there.'
    return f"{source} is not {name.upper()}: {count} with undecodable bytes (line {first}).\n{remedy}"
