"""Which names and patterns of modules settings may hold where they come from a stranger: those that match soon."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

LITERAL = re.compile(r"[\w.-]*", re.ASCII)
"""A name of a module, or the end of one. A dot matches any sign where PEFT takes the name for a pattern."""
MAX_PATTERN, MAX_REPETITIONS = 200, 3
REPETITION = re.compile(r"\.\*|\\d\+")
_PLAIN = r"(?:[\w-]|\\?\.|\.\*|\\d\+)*"
_GROUP = r"\((?:\?:)?([\w.-]+(?:\|[\w.-]+)*)\)"
TAME = re.compile(rf"{_PLAIN}(?:{_GROUP}{_PLAIN})?\$?", re.ASCII)


def is_literal(value: Any) -> bool:
    """Returns whether a setting names modules, alone or in a list, and has no pattern in it."""
    if isinstance(value, list | tuple | set):
        return all(is_literal(one) for one in value)
    return not isinstance(value, str) or LITERAL.fullmatch(value) is not None


def is_tame(pattern: str) -> bool:
    r"""Returns whether a pattern is made of names, a few `.*` and `\d+`, and one choice, so that it ends soon."""
    if len(pattern) > MAX_PATTERN or len(REPETITION.findall(pattern)) > MAX_REPETITIONS:
        return False
    found = TAME.fullmatch(pattern)
    if found is None:
        return False
    choices = (found[1] or "").split("|")
    return len(set(choices)) == len(choices)


def in_full(patterns: Mapping[str, Any], places: Iterable[str]) -> dict[str, Any]:
    """Returns what PEFT's `rank_pattern` and its like give each module, under a name in which nothing is a pattern."""
    named = {}
    for place in places:
        value = next((value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", place)), None)
        if value is not None:
            # Some of PEFT's types look for a dot before the name, so its first part is left to them.
            named[place.split(".", 1)[-1]] = value
    return named
