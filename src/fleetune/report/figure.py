"""A figure is its numbers, a way to draw them, and words for those who cannot see it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from fleetune.compare.intervals import UNBOUNDED_ABOVE

if TYPE_CHECKING:
    from typing import TypeAlias

    import altair as alt
    import pandas as pd

    Picture: TypeAlias = alt.Chart | alt.LayerChart | alt.FacetChart

# Readable on white and on near-black, so that one drawing serves both themes and print.
ACCENT = "#3b7dd8"
MUTED = "#8b97a5"
WARNING = "#c98a1b"
SERIES = [
    "#3b7dd8", "#d9772b", "#2f9e6e", "#c4527e", "#8a6fd1", "#9a7b3f", "#2b9fb3", "#d0574a", "#7a8794", "#7fa236",
]  # fmt: skip
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
SIGNIFICANT_DIGITS = 6
LETTER_PIXELS, SYMBOL_PIXELS, LONGEST_LABEL = 7, 30, 300
PNG_SCALE = 2.0
INK = "#1b1f24"
_NOT_IN_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""What no SVG can hold, and vl-convert ends the process at."""
_CONTROL_PICTURES = 0x2400
SVG_WIDTH = {"wide": 720, "panel": 300}

# currentColor takes the page's text colour where the drawing stands in a page, and black in a file of its own.
CONFIG: dict[str, Any] = {
    "font": FONT,
    "background": None,
    "view": {"stroke": None},
    "axis": {
        "labelColor": "currentColor",
        "titleColor": "currentColor",
        "labelFontSize": 12,
        "titleFontSize": 12,
        "titleFontWeight": "normal",
        "gridColor": "currentColor",
        "gridOpacity": 0.12,
        "domain": False,
        "ticks": False,
        "labelPadding": 6,
        "titlePadding": 8,
    },
    "legend": {
        "labelColor": "currentColor",
        "titleColor": "currentColor",
        "labelFontSize": 12,
        "titleFontSize": 12,
        "titleFontWeight": "normal",
        "orient": "top",
        "labelLimit": 260,
        "symbolStrokeWidth": 2,
    },
    "text": {"color": "currentColor", "fontSize": 12},
    "range": {"category": SERIES},
}


@dataclass(frozen=True)
class Figure:
    """Numbers with a picture and words.

    Attributes:
        key: Name of its files and its place in the page; letters, digits and hyphens.
        title: What is shown.
        caption: How to read it, in a sentence or two.
        alternative: What a reader would see, in words with numbers.
        table: The numbers, one row a mark.
        draw: Makes the picture of the table.
        size: `wide` takes the page's width, `panel` stands beside others of its kind.
    """

    key: str
    title: str
    caption: str
    alternative: str
    table: pd.DataFrame
    draw: Callable[[pd.DataFrame], Picture]
    size: str = "wide"

    def frame(self) -> pd.DataFrame:
        """Returns the numbers that are drawn."""
        return self.table.copy()

    def chart(self) -> Picture:
        """Returns the picture."""
        return self.draw(self.table)

    def spec(self, width: int | str = "container") -> dict[str, Any]:
        """Returns the picture as a Vega-Lite specification of that width, its numbers included."""
        import altair as alt

        with alt.data_transformers.enable("default", max_rows=None, consolidate_datasets=True):
            # Against Altair's schema, which takes longer than all else, the tests hold every figure.
            spec: dict[str, Any] = self.chart().to_dict(validate=False)
        spec |= {"width": width, "config": CONFIG, "description": self.alternative}
        spec["autosize"] = {"type": "fit-x" if width == "container" else "pad", "contains": "padding"}
        spec["datasets"] = {name: _rounded(rows) for name, rows in spec.get("datasets", {}).items()}
        drawable: dict[str, Any] = _drawable(spec)
        return drawable

    def svg(self) -> str:
        """Returns the picture as an SVG document."""
        import vl_convert

        return vl_convert.vegalite_to_svg(json.dumps(self.spec(SVG_WIDTH[self.size])))

    def png(self, scale: float = PNG_SCALE) -> bytes:
        """Returns the picture as a PNG file, dark on white."""
        return png_of(self.svg(), scale)


def png_of(svg: str, scale: float = PNG_SCALE) -> bytes:
    """Returns a drawing of `Figure.svg` as a PNG file, dark on white."""
    import vl_convert

    opening = svg.index(">") + 1
    white = '<rect width="100%" height="100%" fill="white"/>'
    dark = svg[opening:].replace('="currentColor"', f'="{INK}"')
    return bytes(vl_convert.svg_to_png(svg[:opening] + white + dark, scale=scale))


def domain(values: Sequence[float], floor: float | None = None, ceiling: float | None = None) -> list[float]:
    """Returns the ends of an axis that holds the finite `values` with some air, from `floor` and below `ceiling`."""
    finite = [value for value in values if np.isfinite(value)]
    if not finite:
        return [0.0, 1.0]
    low, high = min(finite), max(finite)
    air = (high - low) * 0.06 or abs(high) * 0.05 or 0.05
    top = high + air if ceiling is None else min(high + air, ceiling)
    return [low - air if floor is None else floor, top]


def score_ceiling(metric: str) -> float | None:
    """Returns the highest value of the metric, None where it has none."""
    return None if metric in UNBOUNDED_ABOVE else 1.0


def listed(pairs: Sequence[tuple[str, str]], limit: int = 8) -> str:
    """Returns `name value` pairs in words, the first `limit` of them."""
    shown = "; ".join(f"{name} {value}" for name, value in pairs[:limit])
    return shown + (f"; and {len(pairs) - limit} more" if len(pairs) > limit else "")


def legend_of(names: Sequence[str], orient: Literal["top", "bottom"] = "top") -> alt.Legend | None:
    """Returns a legend with as many columns as the names leave room for, none where there is one name or no name."""
    import altair as alt

    if len(names) < 2:
        return None
    wide = LETTER_PIXELS * max(map(len, names)) + SYMBOL_PIXELS
    return alt.Legend(
        columns=alt.ExprRef(f"max(1, floor((width + {SYMBOL_PIXELS}) / {wide}))"),
        labelLimit=LONGEST_LABEL,
        orient=orient,
        symbolOpacity=1,
        symbolType="circle",
    )


def _drawable(value: Any) -> Any:
    """Returns a specification with signs in it that XML lacks shown: labels and names come from data."""
    if isinstance(value, dict):
        return {_drawable(key): _drawable(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_drawable(one) for one in value]
    return _NOT_IN_XML.sub(_shown, value) if isinstance(value, str) else value


def _shown(found: re.Match[str]) -> str:
    """Returns the picture that Unicode has of a control character, so that labels stay apart; else U+FFFD."""
    code = ord(found[0])
    return chr(_CONTROL_PICTURES + code) if code < 0x20 else "\ufffd"


def _rounded(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: _short(value) for key, value in row.items()} for row in rows]


def _short(value: Any) -> Any:
    return float(f"{value:.{SIGNIFICANT_DIGITS}g}") if isinstance(value, float) else value
