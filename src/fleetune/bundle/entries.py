"""Which files a bundle may hold, and how its JSON is read: a bundle is data from strangers."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
DEVICE_NAME = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)
"""Windows takes such names for devices, whatever their suffix."""
DATA_SUFFIXES = (".json", ".safetensors", ".txt", ".model", ".jinja", ".codes", ".bpe", ".vocab", ".tiktoken")
"""Files of models and tokenizers that are data: no code, no pickles, nothing compiled."""
MAX_DEPTH = 64
MAX_CONTAINERS = 100_000
"""Lists and tables in a configuration; each takes many times the two bytes that it has in the file."""


def name_fault(name: str) -> str | None:
    """Returns why a bundle may not list a file called `name`; None where it may."""
    if not PLAIN_NAME.fullmatch(name) or name.endswith("."):
        return f"{name[:80]!r} is no plain file name"
    if DEVICE_NAME.fullmatch(name):
        return f"{name!r} is the name of a device"
    if not name.endswith(DATA_SUFFIXES):
        return f"{name!r} is no kind of file that a bundle holds ({', '.join(DATA_SUFFIXES)})"
    return None


def is_own_file(path: Path) -> bool:
    """Returns whether `path` is a regular file that lies there itself, and not a link to one."""
    return not path.is_symlink() and path.is_file()


def read_table(path: Path, max_bytes: int, max_containers: int | None = None) -> dict[str, Any]:
    """Returns the JSON object in a file, each of its keys once.

    Raises:
        ValueError: If it is too large, no JSON object, nested too deeply, or a key stands twice.
        OSError: If it cannot be read.
    """
    with path.open("rb") as file:
        data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise ValueError(f"it has more than {max_bytes:,} bytes, which are not read")
    if max_containers is not None and data.count(b"[") + data.count(b"{") > max_containers:
        raise ValueError(f"it has more than {max_containers:,} lists and tables")
    try:
        document = json.loads(data, object_pairs_hook=_without_repeats)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except (UnicodeDecodeError, json.JSONDecodeError):
        raise ValueError("it is not readable as JSON") from None
    if not isinstance(document, dict):
        raise ValueError("it holds no table")
    for depth, _, _ in entries_of(document):
        if depth > MAX_DEPTH:
            raise ValueError("it is nested too deeply")
    return document


def entries_of(document: dict[str, Any]) -> Iterator[tuple[int, str | None, Any]]:
    """Yields depth, key and value of every entry of a JSON document; an entry of a list has no key."""
    waiting: list[tuple[int, Any]] = [(1, document)]
    while waiting:
        depth, node = waiting.pop()
        pairs = node.items() if isinstance(node, dict) else ((None, entry) for entry in node)
        for key, value in pairs:
            yield depth, key, value
            if isinstance(value, dict | list):
                waiting.append((depth + 1, value))


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {twice[:80]!r} stands there twice")
    return document
