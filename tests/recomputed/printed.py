"""Numbers as people print them, held against numbers: each to the digits that it shows."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field

UNITS = {
    "": 1.0, "%": 0.01, "s": 1.0, "B": 1.0, "K": 1e3, "kB": 1e3, "M": 1e6, "MB": 1e6, "GB": 1e9, "G": 1e9, "T": 1e12,
    "P": 1e15, "E": 1e18, "B ": 1e9,
}  # fmt: skip
UNKNOWN = ("", "–", "None", "nan")
PLAIN = re.compile(r"([-−+]?)(\d[\d,]*(?:\.\d+)?)(?:e([+-]?\d+))?\s*([A-Za-z%]*)")
LONG = re.compile(r"(?:(\d+) h )?(\d+) min(?: (\d+) s)?")
IN_WORDS = re.compile(
    r"(?<![\w.#-])[-−+]?\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?(?: min \d+ s\b| h \d+ min\b| ?(?:kB|MB|GB|[KMGT]|s)\b| ?%)?"
)


@dataclass(frozen=True)
class Read:
    """A number that was read, and by how much what was printed may lie off it."""

    value: float
    slack: float


def read(text: str) -> Read | None:
    """Returns the number printed in `text`; None where it says that nothing is known.

    Raises:
        ValueError: If it is no number.
    """
    text = text.strip().removeprefix("±").strip()
    if text in UNKNOWN:
        return None
    if found := LONG.fullmatch(text):
        hours, minutes, seconds = (int(one or 0) for one in found.groups())
        return Read(hours * 3600.0 + minutes * 60.0 + seconds, 60.5 if found[1] else 0.5)
    found = PLAIN.fullmatch(text)
    if not found or found[4] not in UNITS:
        raise ValueError(f"{text!r} is no number")
    sign, digits, exponent, unit = found.groups()
    size = UNITS[unit] * 10.0 ** int(exponent or 0)
    decimals = len(digits.partition(".")[2])
    value = float(digits.replace(",", "")) * (-1.0 if sign in ("-", "−") else 1.0)
    return Read(value * size, 0.5 * 10.0**-decimals * size)


def in_words(sentence: str, names: Iterable[str] = ()) -> list[str]:
    """Returns the numbers printed in a sentence, those in `names` left out."""
    for name in sorted(names, key=len, reverse=True):
        sentence = sentence.replace(name, " ")
    return [one.rstrip(",") for one in IN_WORDS.findall(sentence)]


@dataclass
class Checks:
    """What was checked, what was wrong, and what was not recomputed."""

    count: int = 0
    wrong: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)

    def equal(self, where: str, found: object, expected: object) -> None:
        """Checks a count, a name or a flag."""
        self.count += 1
        if found != expected:
            self.wrong.append(f"{where}: {found!r} stands there, recomputed {expected!r}")

    def close(self, where: str, found: float | None, expected: float | None, relative: float = 1e-6) -> None:
        """Checks a number in full precision."""
        expected = None if expected is None or not math.isfinite(expected) else expected
        self.count += 1
        if found is None or expected is None:
            good = found is None and expected is None
        else:
            good = math.isclose(found, expected, rel_tol=relative, abs_tol=relative / 1e3)
        if not good:
            self.wrong.append(f"{where}: {found!r} stands there, recomputed {expected!r}")

    def printed(self, where: str, text: str, expected: float | None, relative: float = 1e-6) -> None:
        """Checks a printed number, to the digits that it shows."""
        expected = None if expected is None or not math.isfinite(expected) else expected
        self.count += 1
        if text.startswith("< "):
            limit = read(text[2:])
            good = expected is not None and limit is not None and expected < limit.value
        else:
            try:
                found = read(text)
            except ValueError as error:
                self.wrong.append(f"{where}: {error}, recomputed {expected!r}")
                return
            good = (found is None) == (expected is None) and (found is None or fits(found, expected or 0.0, relative))
        if not good:
            self.wrong.append(f"{where}: {text!r} stands there, recomputed {expected!r}")

    def among(self, where: str, sentence: str, pool: Iterable[float], names: Iterable[str] = ()) -> None:
        """Checks that every number in a sentence is one of `pool`."""
        known = [value for value in pool if math.isfinite(value)]
        for text in in_words(sentence, names):
            self.count += 1
            found = read(text)
            if found is not None and not any(fits(found, sign * value) for value in known for sign in (1, -1)):
                self.wrong.append(f"{where}: {text!r} follows from no recomputed number, in {_short(sentence)!r}")

    def skip(self, what: str) -> None:
        if what not in self.skipped:
            self.skipped.append(what)


def _short(sentence: str) -> str:
    return sentence if len(sentence) <= 100 else f"{sentence[:100]} …"


def fits(found: Read, expected: float, relative: float = 1e-6) -> bool:
    return abs(found.value - expected) <= found.slack * (1.0 + 1e-9) + abs(expected) * relative + 1e-12
