"""Applies `--set a.b=c` to a recipe's tables before they are checked."""

from __future__ import annotations

import tomllib
from typing import Any

from fleetune.errors import RecipeError
from fleetune.lab.limits import MOST_LEVELS, parsed

Document = dict[str, Any]
MOST_SHOWN = 200
TOP_LEVEL = ("track",)
"""What stands in a recipe above its tables."""


def apply_overrides(document: Document, overrides: list[str]) -> Document:
    """Returns `document` with each `table.key=value` set; the value is read as TOML, and as a string if it is none.

    `track=value` stands above the tables.
    An entry of a list is chosen by its place (`method.0.rank=8`), its name or its kind (`method.lora.rank=8`).

    Raises:
        RecipeError: If an override has no `=`, no table, or names an entry that does not exist.
    """
    result: Document = _copied(document)
    for override in overrides:
        path, separator, text = override.partition("=")
        shown = override if len(override) <= MOST_SHOWN else override[:MOST_SHOWN] + "…"
        keys = [key.strip() for key in path.split(".")]
        if not separator or (len(keys) < 2 and keys[0] not in TOP_LEVEL) or not all(keys):
            raise RecipeError(f"--set {shown}: expected table.key=value, such as --set training.epochs=1")
        if len(keys) > MOST_LEVELS:
            raise RecipeError(f"--set {shown}: more than {MOST_LEVELS} keys, one below the other, are in no recipe")
        for table in _tables(result, keys[:-1], shown):
            table[keys[-1]] = _value(text.strip(), shown)
    return result


def _tables(document: Document, keys: list[str], override: str) -> list[Document]:
    found: list[Any] = [document]
    for key in keys:
        found = [entry for node in found for entry in _entries(node, key, override)]
    tables = [table for node in found for table in (node if isinstance(node, list) else [node])]
    if not all(isinstance(table, dict) for table in tables):
        raise RecipeError(f"--set {override}: '{keys[-1]}' is a value, not a table")
    return tables


def _entries(node: Any, key: str, override: str) -> list[Any]:
    if isinstance(node, dict):
        return [node.setdefault(key, {})]
    if not isinstance(node, list):
        raise RecipeError(f"--set {override}: '{key}' lies below a value, not below a table")
    if key.isdecimal() and len(key) <= len(str(len(node))) and int(key) < len(node):
        return [node[int(key)]]
    chosen = [entry for entry in node if isinstance(entry, dict) and key in (entry.get("name"), entry.get("kind"))]
    if chosen:
        return chosen
    names = [str(entry.get("name", entry.get("kind", place))) for place, entry in enumerate(node)]
    raise RecipeError(f"--set {override}: no entry '{key}'; there are 0 to {len(node) - 1}: {', '.join(names)}")


def _value(text: str, override: str) -> Any:
    try:
        return parsed(f"value = {text}", f"--set {override}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _copied(node: Any) -> Any:
    if isinstance(node, dict):
        return {key: _copied(value) for key, value in node.items()}
    return [_copied(value) for value in node] if isinstance(node, list) else node
