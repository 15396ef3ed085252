"""A comparison as a table for a spreadsheet, a README or a paper."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from fleetune.data.writing import csv_text, harmless
from fleetune.errors import UserError
from fleetune.report.markdown import escaped, one_line
from fleetune.report.words import DASH, duration, integer, metric_title, score, size

if TYPE_CHECKING:
    from fleetune.compare.summary import Comparison

_LATEX_SIGNS = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
}
_LATEX = re.compile("|".join(re.escape(sign) for sign in _LATEX_SIGNS))


def as_table(comparison: Comparison, wanted: str) -> str:
    """Returns the comparison as `csv`, `md` or `latex`.

    Raises:
        UserError: If another format is wanted.
    """
    makers: dict[str, Callable[[Comparison], str]] = {"csv": as_csv, "md": as_markdown, "latex": as_latex}
    if wanted not in makers:
        raise UserError(f"--format {wanted}: there is no such format.\nType one of: {', '.join(makers)}")
    return makers[wanted](comparison)


def as_csv(comparison: Comparison) -> str:
    """Returns every column of `Comparison.frame()`, numbers in full, with a heading; lines end in a line feed.

    Text that a spreadsheet would take for a formula gets an apostrophe before it.
    """
    frame = comparison.frame()
    rows = [[_csv_cell(value) for value in record] for record in frame.itertuples(index=False)]
    return csv_text([[harmless(str(name)) for name in frame.columns], *rows])


def _csv_cell(value: Any) -> str:
    if _is_missing(value):
        return ""
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return str(int(value))
    return harmless(value) if isinstance(value, str) else str(value)


def as_markdown(comparison: Comparison) -> str:
    """Returns the comparison as a Markdown table, with what may be said below; demonstrated winners' means are bold."""
    headings, rows = _printed(comparison)
    lines = ["| " + " | ".join(map(escaped, headings)) + " |"]
    lines += ["| --- |" + " ---: |" * (len(headings) - 2) + " --- |"]
    winners = _winners(comparison)
    for name, cells in rows:
        words = [str(escaped(cell)) for cell in cells]
        if name in winners:
            words[1] = f"**{words[1]}**"
        lines.append("| " + " | ".join(words) + " |")
    return "\n".join([*lines, "", str(escaped(comparison.verdict.reason)), ""])


def as_latex(comparison: Comparison) -> str:
    r"""Returns the comparison as a LaTeX tabular with the rules of booktabs; means of demonstrated winners are bold."""
    headings, rows = _printed(comparison)
    lines = [r"% needs \usepackage{booktabs}", rf"\begin{{tabular}}{{l{'r' * (len(headings) - 2)}l}}", r"\toprule"]
    lines += [" & ".join(map(_latex, headings)) + r" \\", r"\midrule"]
    winners = _winners(comparison)
    for name, cells in rows:
        words = [_latex(cell) for cell in cells]
        if name in winners:
            words[1] = rf"\textbf{{{words[1]}}}"
        lines.append(" & ".join(words) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", f"% {one_line(comparison.verdict.reason)}", ""])


def _latex(text: str) -> str:
    return _LATEX.sub(lambda found: _LATEX_SIGNS[found[0]], one_line(text)).replace(DASH, "--")


def _printed(comparison: Comparison) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """Returns headings, and each row's name with its cells, as people print them."""
    records = comparison.frame().to_dict("records")
    one_metric = comparison.has_one_metric
    scored = metric_title(comparison.metric) if one_metric else "score"
    headings = ["configuration", f"{scored} on {comparison.split}", "95 % interval", "seeds", "trainable", "time"]
    return [*headings, "memory", "bundle", ""], [
        (str(record["name"]), _cells(record, one_metric)) for record in records
    ]


def _cells(record: dict[Any, Any], one_metric: bool) -> list[str]:
    known = {key: None if _is_missing(value) else value for key, value in record.items()}
    mean = score(known["mean"])
    interval = DASH if known["low"] is None else f"[{score(known['low'])}, {score(known['high'])}]"
    return [
        str(record["name"]),
        mean if one_metric else f"{mean} {metric_title(str(record['metric']))}",
        interval,
        str(record["seeds"]),
        integer(known["trainable"]),
        duration(known["seconds"]),
        size(known["peak_bytes"]),
        size(known["bundle_bytes"]),
        ", ".join(_remarks(known)),
    ]


def _winners(comparison: Comparison) -> set[str | None]:
    """Returns the demonstrated winner of each data set that has one."""
    return {verdict.winner for verdict in comparison.verdicts.values()}


def _remarks(record: dict[Any, Any]) -> list[str]:
    remarks = ["tied with the best"] if record.get("tied_with_best") else []
    remarks += ["better, but not chosen"] if record.get("standing") == "ahead" else []
    remarks += ["learned nothing with some seed"] if record.get("degenerate") else []
    return remarks + ([f"{record['failed']} failed"] if record.get("failed") else [])


def _is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))
