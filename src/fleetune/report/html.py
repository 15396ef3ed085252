"""The report of a run: one HTML file that needs no network, its figures as SVG and PNG, the comparison as JSON."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from fleetune.compare.costs import Cost
from fleetune.compare.held_out import HeldOutTexts, TestUse
from fleetune.compare.result import TrialResult
from fleetune.compare.summary import Comparison, compare
from fleetune.data.links import refuse_links
from fleetune.data.writing import write_bytes, write_json, write_text
from fleetune.report import words
from fleetune.report.figure import Figure, png_of
from fleetune.report.page import build_page

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

MAX_TABLE_ROWS = 600
TEMPLATES = "templates"
SNIPPET = "window.vegaEmbed = vegaEmbed;"
_FIGURE = re.compile(r'data-spec="spec-([a-z0-9-]+)"')


class Run(Protocol):
    """What a report needs of a run."""

    @property
    def name(self) -> str:
        """Name of the run."""

    @property
    def recipe_text(self) -> str:
        """The recipe as resolved, TOML."""

    @property
    def trials(self) -> Sequence[TrialResult]:
        """Every trial, failed and unfinished ones too."""

    @property
    def audits(self) -> Sequence[dict[str, Any]]:
        """The audit of each data set, as JSON."""

    @property
    def environment(self) -> Mapping[str, Any]:
        """Versions and hardware."""

    @property
    def command(self) -> str:
        """What was typed."""

    @property
    def hashes(self) -> Mapping[str, str]:
        """SHA-256 of recipe, data and backbones, by what they are of."""

    @property
    def cost(self) -> Cost:
        """By what the cheapest of the tied is recommended."""

    @property
    def texts(self) -> Mapping[str, Mapping[str, HeldOutTexts]]:
        """By data and split the texts that were predicted, where the run kept them."""

    @property
    def test_uses(self) -> Sequence[TestUse]:
        """Each look at scores on the test texts, the first one first."""


def write_report(run: Run, out: Path, figures: bool = True, comparison: Comparison | None = None) -> Path:
    """Writes `index.html`, `comparison.json` and `figures/*.{svg,png}` into `out` and returns the path of the page.

    Args:
        run: The run, finished or not.
        out: Folder of the report; it is made if absent.
        figures: Whether the SVG and PNG files are written; the page has its figures either way.
        comparison: What is said of its trials; made of them where None.

    Raises:
        RunError: If something in `out` is a link, by which files elsewhere would be overwritten.
    """
    refuse_links(out, "index.html", "comparison.json", "figures")
    comparison = comparison or compare(run.trials, cost=run.cost)
    page = build_page(run, comparison)
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "comparison.json", comparison.to_json())
    index = out / "index.html"
    if figures:
        _write_figures(page.figures, out / "figures", _figures_of(index))
    write_text(index, rendered("report.html.j2", page))
    return index


def render(run: Run, comparison: Comparison | None = None) -> str:
    """Returns the page as HTML."""
    return rendered("report.html.j2", build_page(run, comparison or compare(run.trials, cost=run.cost)))


def rendered(template: str, page: object) -> str:
    """Returns the template filled with `page`, its scripts and style within."""
    return _environment().get_template(template).render(page=page, script=_javascript(), **_assets())


def spec_json(figure: Figure) -> Markup:
    """Returns the figure's specification as JSON that cannot end the script element it stands in."""
    from markupsafe import Markup

    text = json.dumps(figure.spec(), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    escapes = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}
    # Every special character is an escape by now, so nothing in the text can be taken for markup.
    return Markup("".join(escapes.get(character, character) for character in text))


def table_rows(figure: Figure) -> dict[str, Any]:
    """Returns columns and rows of the figure's numbers as text, at most 600 rows."""
    table = figure.frame().dropna(axis="columns", how="all")
    rows = [[_cell(value) for value in record] for record in table.head(MAX_TABLE_ROWS).itertuples(index=False)]
    return {"columns": [str(name).replace("_", " ") for name in table.columns], "rows": rows, "total": len(table)}


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return "" if value != value else f"{value:.6g}"
    return str(value)


def _figures_of(index: Path) -> set[str]:
    """Returns the keys of the figures that the page has which is there; its files are the only ones that may go."""
    try:
        return set(_FIGURE.findall(index.read_text(encoding="utf-8", errors="replace")))
    except FileNotFoundError:
        return set()


def _write_figures(figures: Sequence[Figure], folder: Path, before: set[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for outdated in before - {figure.key for figure in figures}:
        for kind in ("svg", "png"):
            (folder / f"{outdated}.{kind}").unlink(missing_ok=True)
    for figure in figures:
        _write_figure(figure, folder)


def _write_figure(figure: Figure, folder: Path) -> None:
    drawn = figure.svg()
    write_text(folder / f"{figure.key}.svg", drawn)
    write_bytes(folder / f"{figure.key}.png", png_of(drawn))


@functools.cache
def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("fleetune.report", TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"score": words.score, "integer": words.integer, "spec_json": spec_json, "table": table_rows}
    return environment


@functools.cache
def _javascript() -> Markup:
    """Returns Vega, Vega-Lite and Vega-Embed as one script."""
    import vl_convert
    from markupsafe import Markup

    return Markup(vl_convert.javascript_bundle(SNIPPET).replace("</script", "<\\/script"))


@functools.cache
def _assets() -> dict[str, Markup]:
    from markupsafe import Markup

    folder = files("fleetune.report") / TEMPLATES
    return {
        name: Markup((folder / file).read_text(encoding="utf-8"))
        for name, file in (("style", "report.css"), ("theme_script", "theme.js"), ("page_script", "report.js"))
    }
