"""How names and numbers are written for readers."""

from __future__ import annotations

import json
import math
import re
import unicodedata
from collections.abc import Callable
from typing import Any

from fleetune.compare.titles import metric_title as metric_title

SPLIT_TITLES = {"train": "training", "validation": "validation", "test": "test"}
DASH = "–"
ABSOLUTE_PATH = re.compile(r'"(?:/|[A-Za-z]:\\\\)(?:[^"]*[/\\])([^"/\\]+)"')


def score(value: float | None) -> str:
    """Returns a score with three digits after the point."""
    return DASH if value is None or not math.isfinite(value) else f"{value:.3f}"


def integer(value: float | None) -> str:
    """Returns a whole number with thousands apart."""
    return DASH if value is None or not math.isfinite(value) else f"{round(value):,}"


def compact(value: float | None) -> str:
    """Returns a count in three digits: 1,234 is "1.23K", 22,713,216 is "22.7M"."""
    if value is None or not math.isfinite(value):
        return DASH
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "K")):
        if abs(value) >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.0f}"


def duration(seconds: float | None) -> str:
    """Returns a time in the two largest units that fit."""
    if seconds is None or not math.isfinite(seconds):
        return DASH
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def size(number: float | None) -> str:
    """Returns bytes in decimal units."""
    if number is None or not math.isfinite(number):
        return DASH
    for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if number >= unit:
            return f"{number / unit:.3g} {name}"
    return f"{number:.0f} B"


def operations(number: float | None) -> str:
    """Returns a number of floating-point operations in three digits: 1.23e13 is "12.3 T"."""
    if number is None or not math.isfinite(number):
        return DASH
    for unit, name in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M")):
        if number >= unit:
            return f"{number / unit:.3g} {name}"
    return f"{number:,.0f}"


def signed(value: float | None) -> str:
    """Returns a difference of scores with its sign."""
    if value is None or not math.isfinite(value):
        return DASH
    sign = "−" if value < 0 else "+"
    return f"{sign}{abs(value):.3f}"


def between(interval: tuple[float, float] | None, write: Callable[[float | None], str] = score) -> str:
    """Returns an interval as "0.812 to 0.845"."""
    return DASH if interval is None else f"{write(interval[0])} to {write(interval[1])}"


def probability(value: float | None) -> str:
    """Returns a p-value with three digits after the point, never as nought."""
    if value is None or not math.isfinite(value):
        return DASH
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def capitalised(text: str) -> str:
    """Returns the text with a capital first letter and the rest as it is."""
    return text[:1].upper() + text[1:]


def share(part: float, whole: float) -> str:
    """Returns a percentage."""
    return f"{100 * part / whole:.1f} %" if whole else DASH


def setting(value: Any) -> str:
    """Returns a setting's value as a reader would write it."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return re.sub(r"e([+-])0+", r"e\1", f"{value:g}").replace("e+", "e")
    if isinstance(value, list | tuple):
        return ", ".join(setting(item) for item in value)
    return value if isinstance(value, str) else json.dumps(value, default=str)


def key(*parts: str) -> str:
    """Returns `parts` as one lower-case name of letters, digits and hyphens, for files and anchors."""
    plain = unicodedata.normalize("NFKD", "-".join(parts)).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "-", plain).strip("-") or "figure"


def threshold_rule(rule: Any, split: str) -> str:
    """Returns how it is decided which labels the texts of `split` get, where a text may have several."""
    if rule != "tuned":
        return f"Threshold {setting(rule)} for each label."
    if split == "validation":
        return "Each text is judged by thresholds tuned for each label's F1 on the other folds of validation."
    return "Thresholds are tuned for each label's F1 on validation alone."


def without_folders(recipe: str) -> str:
    """Returns a recipe with files by their names alone: whose folders they lie in is nobody's business."""
    return ABSOLUTE_PATH.sub(r'"\1"', recipe)
