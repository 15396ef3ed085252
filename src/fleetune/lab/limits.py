"""How large a recipe may be: refused in a line or two before anything is made of it."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

from fleetune.errors import RecipeError

MOST_BYTES = 2_000_000
"""Of a recipe's file. A run freezes its grid point by point, about a kilobyte each."""
MOST_LEVELS = 32
MOST_KEY_PARTS = 16
MOST_TABLES = 1_000
MOST_LINES_OF_TABLES = 10_000
"""Lines that begin with a bracket, or with a key that makes tables: what the parser is slowest at."""
MOST_SEEDS = 1_000
MOST_CONFIGURATIONS = 1_000
MOST_TRIALS = 20_000
WHOLE_NUMBERS = range(-(2**63), 2**63)
"""What TOML holds; more has no decimal form in Python from 4,300 digits on."""
_KEY = r"""(?:(?<![\w-])[\w-]++|(?<!\\)"(?:[^"\\\n]|\\.)*+"|'[^'\n]*+')"""
LONG_KEY = re.compile(rf"(?:{_KEY}[ \t]*+\.[ \t]*+){{{MOST_KEY_PARTS}}}")
LINE_OF_TABLE = re.compile(r"^[ \t]*+(?:\[|[^=.\n]*+\.[^=.\n]*+\.)", re.MULTILINE)


def read_bytes(path: Path) -> bytes:
    """Returns what stands in a recipe's file.

    Raises:
        RecipeError: If it is too large for a recipe.
        OSError: If it cannot be read.
    """
    with path.open("rb") as file:
        content = file.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise RecipeError(
            f"{path} has more than {MOST_BYTES:,} bytes, which no recipe needs.\n"
            "Type: fleetune run RECIPE.toml; the data file goes into the recipe's [data]"
        )
    return content


def parsed(text: str, source: str) -> dict[str, Any]:
    """Returns the tables that `text` is TOML for.

    Raises:
        RecipeError: If a key, a number or the nesting is beyond every recipe.
        tomllib.TOMLDecodeError: If it is no TOML.
    """
    # The parser takes time and memory that grow with the square of a dotted key's parts.
    if LONG_KEY.search(text):
        raise RecipeError(f"{source}: a dotted key has more than {MOST_KEY_PARTS} parts, which no recipe needs")
    if sum(1 for _ in LINE_OF_TABLE.finditer(text)) > MOST_LINES_OF_TABLES:
        raise RecipeError(f"{source} has more than {MOST_LINES_OF_TABLES:,} tables.\nMake several recipes of it")
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        raise
    except RecursionError:
        raise RecipeError(_too_deep(source)) from None
    except ValueError as error:
        raise RecipeError(f"{source} is not TOML: {str(error).splitlines()[0].split(';')[0]}") from None
    refuse_extremes(document, source)
    return document


def refuse_extremes(node: Any, source: str, level: int = 0) -> None:
    """Raises RecipeError where a value lies too deep, or is a whole number beyond 64 bits."""
    if level > MOST_LEVELS:
        raise RecipeError(_too_deep(source))
    if isinstance(node, dict | list | tuple):
        for value in node.values() if isinstance(node, dict) else node:
            refuse_extremes(value, source, level + 1)
    elif isinstance(node, int) and node not in WHOLE_NUMBERS:
        raise RecipeError(f"{source}: a whole number has {node.bit_length():,} bits; those of TOML have 64 at most")


def _too_deep(source: str) -> str:
    return f"{source}: tables or lists lie more than {MOST_LEVELS} levels deep, which no recipe needs"
