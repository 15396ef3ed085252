"""Tables of a comparison: the right numbers, and nothing in a name that a reader's program would act on."""

from __future__ import annotations

import csv
import io
import re
from dataclasses import replace

import pytest
from markdown_it import MarkdownIt

from fleetune.compare.summary import Comparison, compare
from fleetune.errors import UserError
from fleetune.report.tables import as_csv, as_latex, as_markdown, as_table
from tests.unit.synthetic_runs import multi_class_run, trial, troubled_run

HOSTILE = [
    "=1+1",
    "@cmd",
    "a|b & 50% of_x #1 $y$ {z} ~ ^ \\input{f}",
    "<script>alert(1)</script>",
    "**b** `c` [l](http://x)",
]


def hostile() -> Comparison:
    return compare([trial("lora", seed, ["no", "yes"], method=name, data="d") for name in HOSTILE for seed in range(2)])


def cells(markdown: str) -> list[list[str]]:
    """Returns what a reader of the first table sees, by a Markdown parser."""
    tokens = MarkdownIt("gfm-like", {"linkify": False}).parse(markdown)
    rows: list[list[str]] = []
    for token in tokens:
        if token.type == "tr_open":
            rows.append([])
        elif token.type == "inline" and rows and token.level > 2:
            rows[-1].append("".join(child.content for child in token.children or []))
            assert all(
                child.type in ("text", "text_special", "strong_open", "strong_close") for child in token.children or []
            )
    return rows


def test_csv_has_the_frame_in_full() -> None:
    comparison = compare(multi_class_run().trials)
    read = list(csv.DictReader(io.StringIO(as_csv(comparison))))
    frame = comparison.frame()
    assert list(read[0]) == list(frame.columns) and [row["name"] for row in read] == frame["name"].tolist()
    assert [float(row["mean"]) for row in read] == frame["mean"].tolist()
    assert [int(row["trainable"]) for row in read] == frame["trainable"].tolist()


def test_csv_holds_no_formula_and_keeps_names() -> None:
    rows = list(csv.DictReader(io.StringIO(as_csv(hostile()))))
    assert {row["name"] for row in rows} == {"'=1+1", "'@cmd", *HOSTILE[2:]}
    for row in rows:
        for value in row.values():
            assert not value.startswith(("=", "+", "@", "\t")) and not re.match(r"-\D", value)


def test_markdown_shows_every_name_as_it_is() -> None:
    table = cells(as_markdown(hostile()))
    assert {row[0] for row in table[1:]} == set(HOSTILE)
    assert {len(row) for row in table} == {9}


def test_numbers_are_as_people_print_them() -> None:
    comparison = compare(multi_class_run().trials)
    row = comparison.row("lora")
    assert row.interval is not None
    for line in (as_markdown(comparison), as_latex(comparison)):
        (printed,) = [one for one in line.splitlines() if re.match(r"(\| )?lora [|&]", one)]
        assert f"{row.mean:.3f}" in printed and f"{row.interval[0]:.3f}, {row.interval[1]:.3f}" in printed
        assert "222,723" in printed.replace("\\", "") and "894 kB" in printed


def test_latex_is_escaped_and_has_its_rules() -> None:
    text = as_latex(hostile())
    body = text[text.index(r"\midrule") : text.index(r"\bottomrule")]
    assert r"\toprule" in text and text.count(r" \\") == 1 + len(HOSTILE)
    assert r"50\% of\_x \#1 \$y\$ \{z\} \textasciitilde{} \textasciicircum{} \textbackslash{}input\{f\}" in body
    assert not re.search(r"(?<!\\)[%#$_]", body)
    assert all(len(re.findall(r"(?<!\\)&", line)) == 8 for line in body.splitlines()[1:] if line)
    assert all(line.startswith("%") for line in text.splitlines() if comparison_reason(line))


def comparison_reason(line: str) -> bool:
    return "seeds" in line and "tabular" not in line and "&" not in line


@pytest.mark.parametrize(("make", "bold"), [(as_markdown, r"\*\*0\.\d+\*\*"), (as_latex, r"\\textbf\{0\.\d+\}")])
def test_only_a_demonstrated_winner_is_bold(make, bold: str) -> None:
    comparison = compare(multi_class_run().trials)
    assert comparison.verdict.winner is None and not re.search(bold, make(comparison))
    verdicts = {data: replace(verdict, winner="full") for data, verdict in comparison.verdicts.items()}
    crowned = replace(comparison, verdicts=verdicts)
    (line,) = [line for line in make(crowned).splitlines() if re.search(bold, line)]
    assert "full" in line


def test_what_is_not_known_is_a_dash_and_trouble_is_named() -> None:
    text = as_markdown(compare(troubled_run().trials))
    assert "1 failed" in text and "learned nothing with some seed" in text
    alone = compare([trial("lora", 0, ["no", "yes"], seconds=None, peak_bytes=None)])
    assert [cell == "–" for cell in cells(as_markdown(alone))[1]] == [
        False,
        False,
        False,
        False,
        False,
        True,
        True,
        False,
        False,
    ]
    assert next(csv.DictReader(io.StringIO(as_csv(alone))))["seconds"] == ""


def test_another_format_is_refused() -> None:
    with pytest.raises(UserError, match="csv, md, latex"):
        as_table(compare([trial("lora", 0, ["no", "yes"])]), "xlsx")
