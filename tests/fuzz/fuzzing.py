"""Runs one check on many inputs: none may crash, hang, or take memory that the input does not explain."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

SLOWEST_SECONDS = 20.0
"""For one small input, on a machine that does other things besides."""
MOST_MEMORY = 512 << 20
"""By which a process may grow in all of its inputs together."""


def executions(few: int, many: int) -> Any:
    """Returns the mark that gives a test `executions`: a few in each run of the tests, many in `make test-all`."""
    slow = [pytest.mark.slow, pytest.mark.timeout(7_200)]
    return pytest.mark.parametrize(
        "executions", [pytest.param(few, id="few"), pytest.param(many, id="many", marks=slow)]
    )


def fuzz(inputs: st.SearchStrategy[Any], executions: int, check: Callable[[Any], None]) -> None:
    """Calls `check` with that many inputs, the same ones each time; fails on what it raises, on a hang, on memory."""
    made = 0

    @settings(
        max_examples=executions,
        derandomize=True,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(inputs)
    def once(one: Any) -> None:
        nonlocal made
        made += 1
        started = time.monotonic()
        check(one)
        assert time.monotonic() - started < SLOWEST_SECONDS

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    once()
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    assert made >= executions
    assert grown < MOST_MEMORY


def assert_short(error: Exception) -> None:
    """Fails unless the message of an error for the user is there, and has a few lines."""
    assert 1 <= len(str(error).splitlines()) <= 3


def mutated(whole: bytes, pieces: list[bytes]) -> st.SearchStrategy[bytes]:
    """Returns what draws `whole` with bytes cut out, repeated, replaced, or pieces put in."""
    edit = st.tuples(
        st.sampled_from(["insert", "delete", "replace", "repeat", "cut"]),
        st.integers(0, len(whole)),
        st.integers(1, 40),
        st.one_of(st.sampled_from(pieces), st.binary(max_size=12)),
    )
    return st.lists(edit, max_size=5).map(lambda edits: _edited(whole, edits))


def _edited(whole: bytes, edits: list[tuple[str, int, int, bytes]]) -> bytes:
    content = whole
    for action, place, length, piece in edits:
        match action:
            case "insert":
                content = content[:place] + piece + content[place:]
            case "delete":
                content = content[:place] + content[place + length :]
            case "replace":
                content = content[:place] + piece + content[place + len(piece) :]
            case "repeat":
                content = content[:place] + content[place : place + length] * 3 + content[place + length :]
            case _:
                content = content[:place]
    return content


ODD_VALUES: list[Any] = [
    None, True, False, 0, -1, 1, 2**31, 2**63, 10**30, 0.5, -0.0, 1e308, float("nan"), float("inf"), "", "x", "0", "\0",
    "../..", "/dev/zero", "é\u202e", "\ud800", [], {}, [[]], [None], {"": 1}, {"a": {"b": []}},
]  # fmt: skip


def mutated_document(whole: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Returns what draws `whole` with entries anywhere in it replaced, removed, renamed or copied elsewhere."""
    paths = list(_paths(whole))
    edit = st.tuples(
        st.sampled_from(paths),
        st.sampled_from(["replace", "replace", "remove", "rename", "copy"]),
        st.sampled_from(ODD_VALUES),
        st.sampled_from(paths),
    )
    return st.lists(edit, min_size=1, max_size=3).map(lambda edits: _document_edited(whole, edits))


def _paths(node: Any, path: tuple[Any, ...] = ()) -> Any:
    entries = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in entries:
        yield (*path, key)
        yield from _paths(value, (*path, key))


def _document_edited(whole: dict[str, Any], edits: list[Any]) -> dict[str, Any]:
    import copy

    document = copy.deepcopy(whole)
    for path, action, value, other in edits:
        try:
            holder: Any = document
            for key in path[:-1]:
                holder = holder[key]
            match action:
                case "replace":
                    holder[path[-1]] = copy.deepcopy(value)
                case "remove":
                    del holder[path[-1]]
                case "rename":
                    holder[f"{path[-1]}x"] = holder.pop(path[-1])
                case _:
                    source: Any = whole
                    for key in other:
                        source = source[key]
                    holder[path[-1]] = copy.deepcopy(source)
        except (KeyError, IndexError, TypeError, AttributeError):
            continue
    return document
