"""Columns of a file that nobody has described yet: what stands in them, and which may be text or label."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from fleetune.data.table import Cell

TEXT_NAMES = (
    "text", "sentence", "review", "content", "body", "message", "tweet", "comment", "document", "description",
    "utterance", "question", "query", "post", "headline", "title", "abstract", "summary",
)  # fmt: skip
LABEL_NAMES = (
    "label", "labels", "class", "category", "categories", "sentiment", "target", "intent", "topic", "topics", "tag",
    "tags", "genre", "emotion", "y", "rating", "stars", "polarity", "stance", "is_duplicate", "gold_label",
)  # fmt: skip
PAIR_NAMES = (
    ("sentence1", "sentence2"), ("sentence_1", "sentence_2"), ("text_a", "text_b"), ("text1", "text2"),
    ("text_1", "text_2"), ("premise", "hypothesis"), ("question1", "question2"), ("question", "sentence"),
    ("question", "passage"), ("query", "document"), ("query", "passage"), ("sentence_a", "sentence_b"),
)  # fmt: skip
SEPARATORS = ("|", ";", ",", "/")
NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
INTEGER = re.compile(r"[+-]?[0-9]+(?:\.0*)?")
FLAGS = {"0", "1", "0.0", "1.0"}
MAX_LABELS = 200
MAX_LABEL_CHARACTERS = 60


@dataclass(frozen=True)
class ColumnProfile:
    """What stands in one column, from a part of its rows.

    Attributes:
        name: Its name.
        filled: Rows where it holds a value.
        empty: Rows where it does not.
        distinct: Number of different values.
        commonest: The most frequent values.
        mean_words: Mean number of words.
        long_words: Number of words that 95 % of the values stay below.
        numeric: Whether every value is a number.
        whole: Whether every value is a whole number.
        flag: Whether every value is 0 or 1.
        listed: Whether values are lists.
        separator: What separates several labels in one cell, None where nothing does.
    """

    name: str
    filled: int
    empty: int
    distinct: int
    commonest: list[str]
    mean_words: float
    long_words: int
    numeric: bool
    whole: bool
    flag: bool
    listed: bool
    separator: str | None

    @property
    def may_be_label(self) -> bool:
        """Whether there are a few values that repeat, and they are no measurements."""
        if self.listed or self.separator is not None:
            return True
        repeats = 2 <= self.distinct <= min(MAX_LABELS, max(2, self.filled // 2))
        measured = self.numeric and not self.whole
        return repeats and not measured and all(len(value) <= MAX_LABEL_CHARACTERS for value in self.commonest)


def profile_column(name: str, cells: Sequence[Cell]) -> ColumnProfile:
    """Returns the profile of one column."""
    listed = any(isinstance(cell, list) for cell in cells)
    values = [
        str(item).strip() for cell in cells for item in (cell if isinstance(cell, list) else [cell]) if _holds(item)
    ]
    counts = Counter(values)
    words = sorted(len(value.split()) for value in values) or [0]
    return ColumnProfile(
        name=name,
        filled=sum(bool(cell) if isinstance(cell, list) else _holds(cell) for cell in cells),
        empty=sum(not _holds(cell) for cell in cells if not isinstance(cell, list)),
        distinct=len(counts),
        commonest=[value for value, _ in counts.most_common(5)],
        mean_words=sum(words) / len(words),
        long_words=words[min(len(words) - 1, int(0.95 * len(words)))],
        numeric=bool(counts) and all(NUMBER.fullmatch(value) for value in counts),
        whole=bool(counts) and all(INTEGER.fullmatch(value) for value in counts),
        flag=bool(counts) and set(counts) <= FLAGS | {"True", "False", "true", "false"},
        listed=listed,
        separator=None if listed else _separator(counts),
    )


def guess_text(profiles: list[ColumnProfile], label: str | list[str] | None = None) -> str | list[str] | None:
    """Returns the column of text, or the two of a pair; None where nothing looks like text."""
    taken = {label} if isinstance(label, str) else set(label or ())
    free = {profile.name: profile for profile in profiles if profile.name not in taken and profile.filled}
    by_name = {name.casefold(): name for name in free}
    for first, second in PAIR_NAMES:
        if first in by_name and second in by_name:
            return [by_name[first], by_name[second]]
    candidates = [profile for profile in free.values() if not profile.numeric and not profile.listed]
    if not candidates:
        return None
    return max(candidates, key=lambda profile: (_text_score(profile), profile.mean_words)).name


def guess_label(profiles: list[ColumnProfile], text: str | list[str] | None = None) -> str | list[str] | None:
    """Returns the column of labels, or the 0/1 columns; None where nothing looks like labels."""
    taken = {text} if isinstance(text, str) else set(text or ())
    candidates = [profile for profile in profiles if profile.name not in taken and profile.may_be_label]
    named = [profile for profile in candidates if profile.name.casefold() in LABEL_NAMES]
    if named:
        return min(named, key=lambda profile: LABEL_NAMES.index(profile.name.casefold())).name
    flags = [profile.name for profile in profiles if profile.name not in taken and profile.flag and not profile.empty]
    if len(flags) >= 2:
        return flags
    if not candidates:
        return None
    # Names of classes are likelier than numbers, then fewer values than more.
    return min(
        candidates, key=lambda profile: (profile.numeric and not profile.flag, profile.empty, profile.distinct)
    ).name


def _text_score(profile: ColumnProfile) -> float:
    name = profile.name.casefold()
    named = 3.0 if name in TEXT_NAMES else 1.0 if any(part in name for part in TEXT_NAMES) else 0.0
    varied = profile.distinct / max(1, profile.filled)
    return named + 2.0 * varied + math.log1p(profile.mean_words)


def _holds(cell: object) -> bool:
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return False
    return not isinstance(cell, str) or not (not cell or cell.isspace())


def _separator(counts: Counter[str]) -> str | None:
    """Returns what separates labels within the values: where cut there, they are few words that repeat."""
    total = sum(counts.values())
    for separator in SEPARATORS:
        holding = sum(number for value, number in counts.items() if separator in value)
        if holding < 0.05 * total:
            continue
        parts = Counter(part.strip() for value in counts.elements() for part in value.split(separator))
        short = all(len(part) <= MAX_LABEL_CHARACTERS and len(part.split()) <= 3 for part in parts)
        few = 2 <= len(parts) <= MAX_LABELS and sum(parts.values()) >= 3 * len(parts)
        # A bar or semicolon hardly stands within a label; a comma or slash may.
        fewer = len(parts) < len(counts) + (separator in "|;")
        if short and few and fewer:
            return separator
    return None
