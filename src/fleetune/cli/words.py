"""Numbers as people read them."""

from __future__ import annotations

import math


def duration(seconds: float | None) -> str:
    """Returns `42 s`, `3 min 5 s` or `2 h 10 min`."""
    if seconds is None or not math.isfinite(seconds):
        return "–"
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def size(number: int | None) -> str:
    """Returns a number of bytes in its largest unit."""
    if number is None:
        return "–"
    value = float(number)
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} GiB"


def number(value: float | None, digits: int = 4) -> str:
    """Returns the value with so many digits after the point, or a dash."""
    return "–" if value is None or not math.isfinite(value) else f"{value:.{digits}f}"


def counted(value: int, noun: str) -> str:
    """Returns the number with its noun: `1 trial`, `2 trials`."""
    return f"{value:,} {noun}" if value == 1 else f"{value:,} {noun}s"


def count(value: int | None) -> str:
    """Returns the number with separators between thousands."""
    return "–" if value is None else f"{value:,}"
