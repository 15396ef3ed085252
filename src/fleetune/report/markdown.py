"""Text from data in Markdown: it stays text, whatever signs it is made of."""

from __future__ import annotations

import html
import re
from typing import Any

from markupsafe import Markup

_SIGNS = re.compile(r"([\\`*_{}\[\]#|~$@]|:(?=\S))")
_LEADING = re.compile(r"^([-+=](?!\d)|\d+(?=[.)](?:\s|$)))")
_WEB = re.compile(r"\b(www)\.", re.IGNORECASE)
_INVISIBLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]+")


def escaped(value: Any) -> Markup:
    """Returns `value` as one line of Markdown that shows it literally: no markup, no HTML, no link, no new cell.

    What is `Markup` already is returned as it is.
    """
    if isinstance(value, Markup):
        return value
    text = html.escape(one_line(value), quote=False)
    text = _WEB.sub(r"\1\\.", _SIGNS.sub(r"\\\1", text))
    return Markup(_LEADING.sub(lambda found: _shown(found[1]), text))


def one_line(value: Any) -> str:
    """Returns `value` as text without line breaks and invisible characters."""
    return " ".join(_INVISIBLE.sub(" ", str(value)).split())


def code(value: Any) -> Markup:
    """Returns `value` as a code span that also may stand in a table."""
    text = one_line(value)
    fence = "`" * (_longest_run(text, "`") + 1)
    room = " " if text.startswith("`") or text.endswith("`") or not text else ""
    # A table is parted at its bars before code is looked for; a backslash keeps one whole.
    return Markup(fence + room + text.replace("|", "\\|") + room + fence)


def code_block(text: str, language: str = "") -> Markup:
    """Returns `text` as a block of code whose fence nothing in it can end."""
    fence = "`" * max(3, _longest_run(text, "`") + 1)
    return Markup(f"{fence}{language}\n{text.rstrip()}\n{fence}")


def table_row(cells: list[Any]) -> Markup:
    """Returns one line of a table, its cells escaped."""
    return Markup("| " + " | ".join(escaped(cell) for cell in cells) + " |")


def _shown(start: str) -> str:
    return f"\\{start}" if start in "-+=" else f"{start}\\"


def _longest_run(text: str, sign: str) -> int:
    return max((len(run) for run in re.findall(f"{re.escape(sign)}+", text)), default=0)
