"""What came from data stays text in a spreadsheet, on a terminal, in HTML and in pictures."""

from __future__ import annotations

import csv
import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from xml.etree import ElementTree

import altair as alt
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleetune.cli.output import print_json, print_line, print_table, safe
from fleetune.compare.summary import compare
from fleetune.data.gate import quarantine_csv
from fleetune.data.table import Quarantine, QuarantinedRecord
from fleetune.data.writing import harmless
from fleetune.report.html import render
from fleetune.report.page import build_page
from fleetune.report.tables import as_csv
from tests.unit.synthetic_runs import SyntheticRun, multi_class_run, trial

FORMULAS = [
    '=HYPERLINK("http://x","y")',
    "=cmd|'/C calc'!A0",
    "+1+1",
    "-2+3",
    "@SUM(1)",
    "\t=1",
    "\r=1",
    "\n=1",
    " =1",
    "\u00a0=1",
    "\ufeff=1",
    "\uff1d1+1",
    "|cmd",
    "%0A=1",
]
MARKUP = ["<script>alert(1)</script>", "</script><svg onload=alert(1)>", '"onmouseover="alert(1)', "'onfocus='alert(1)",
          "<!--", "]]>", "javascript:alert(1)", "{{ 7 * 7 }}"]  # fmt: skip
SIGNS = ("=", "+", "-", "@", "\t", "\r", "\n", "|", "%", "\uff1d", "\uff0b", "\uff0d", "\uff20")
CONTROLS = ["\x1b[2J", "\x1b]0;title\x07", "\x9b2J", "\x08\x08", "\r", "\u202e", "\u2066", "\x7f", "\u2028", "\0"]


@pytest.mark.parametrize("text", FORMULAS)
def test_a_formula_becomes_text(text: str) -> None:
    assert harmless(text) in (f"'{text}", f"'{text[0]}'{text[1:]}")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("fine;=1+1", "fine;'=1+1"),
        ("a\t+1", "a\t'+1"),
        ("a; \u00a0@SUM(1);b", "a;' \u00a0@SUM(1);b"),
        ('a;"=1"', 'a;\'"=1"'),
        ("a\n-1\r\n=2", "a\n'-1\r\n'=2"),
        ("'=1 and ;'=2", "''=1 and ;''=2"),
        ("one; two = 2\tthree", "one; two = 2\tthree"),
        ("a-b;c", "a-b;c"),
    ],
)
def test_a_formula_after_a_sign_that_spreadsheets_split_at_becomes_text(text: str, shown: str) -> None:
    assert harmless(text) == shown


@given(st.text(st.sampled_from("=+-@|%;\t\r\n'\"\ufeff\u00a0\uff1d ,ab")) | st.text())
def test_no_cell_begins_like_a_formula_and_one_apostrophe_less_is_the_text(text: str) -> None:
    cell = harmless(text)
    assert not cell.lstrip(" \u00a0\ufeff").startswith(SIGNS)
    for part in re.split("[;\t\r\n]", cell)[1:]:
        assert not part.lstrip(' \u00a0\ufeff"').startswith(SIGNS)
    signs = "=+@|%\uff1d\uff0b\uff0d\uff20-"
    begins = rf"^'(?=[ \u00a0\ufeff']*[\t\r\n{signs}])|(?<=[;\t\r\n])'(?=[ \u00a0\ufeff'\"]*[{signs}])"
    assert re.sub(begins, "", cell) == text.replace("\0", "\\0")


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_no_field_begins_like_a_formula_wherever_a_spreadsheet_splits(delimiter: str) -> None:
    texts = [f"{before}{text}" for before in ("", "a;", "a\t", "a,b;", 'a;"', "a\n") for text in FORMULAS]
    table = quarantine_csv(Quarantine(QuarantinedRecord("x.csv", 1, text, text) for text in texts))
    for row in csv.reader(io.StringIO(table, newline=""), delimiter=delimiter):
        for cell in row:
            # Tabs before the apostrophe begin nothing by themselves.
            assert not cell.lstrip(' \u00a0\ufeff"\t\r\n').startswith(SIGNS)


def test_quarantined_records_hold_no_formula() -> None:
    records = [QuarantinedRecord(text, number, text, text) for number, text in enumerate([*FORMULAS, *MARKUP, "a\0b"])]
    rows = list(csv.reader(io.StringIO(quarantine_csv(Quarantine(records)), newline="")))
    assert len(rows) == len(records) + 1
    assert not [cell for row in rows for cell in row if cell.lstrip(" \u00a0\ufeff").startswith(SIGNS)]


def test_a_comparison_holds_no_formula() -> None:
    trials = [trial("lora", seed, ["no", "yes"], method=text, data=text) for text in FORMULAS for seed in range(2)]
    table = as_csv(compare(trials))
    for row in csv.reader(io.StringIO(table, newline="")):
        for cell in row:
            assert is_number(cell) or not cell.startswith(SIGNS)


def is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


class Tags(HTMLParser):
    """Collects every element with its attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def hostile_run() -> SyntheticRun:
    trials = [
        trial(kind, seed, MARKUP, method=f"{kind} {MARKUP[0]}{MARKUP[2]}", notes=MARKUP, data=MARKUP[1])
        for kind in ("lora", "head")
        for seed in range(2)
    ]
    trials[0] = replace(trials[0], status="failed", reason="".join(MARKUP))
    return replace(
        multi_class_run(),
        name=MARKUP[2],
        trials=trials,
        recipe_text="".join(MARKUP),
        command="".join(MARKUP),
        environment={text: text for text in MARKUP},
    )


def test_names_labels_and_texts_add_neither_elements_nor_attributes() -> None:
    hostile, clean = Tags(render(hostile_run())), Tags(render(multi_class_run()))
    assert {tag for tag, _ in hostile.found} <= {tag for tag, _ in clean.found} | {"li", "p", "ul", "strong", "em"}
    for _, attributes in hostile.found:
        assert not [name for name in attributes if name.startswith("on")]
        address = attributes.get("href") or attributes.get("src") or ""
        assert not address.lower().lstrip().startswith(("javascript:", "data:text"))


def test_pictures_are_whole_and_have_no_scripts() -> None:
    run = hostile_run()
    for figure in build_page(run, compare(run.trials)).figures[:6]:
        drawn = ElementTree.fromstring(figure.svg())
        for element in drawn.iter():
            assert not element.tag.endswith("script")
            assert not [name for name in element.attrib if name.startswith("on")]


def test_signs_that_pictures_cannot_hold_are_shown_and_labels_stay_apart() -> None:
    labels = ["a\bb", "a\x1b[31mb", "a\ufffeb", "a\0b", "fine\u0085"]
    (figure, *_) = build_page(multi_class_run(), compare(multi_class_run().trials)).figures
    table = pd.DataFrame({"label": labels, "score": range(len(labels))})
    hostile = replace(
        figure,
        alternative="".join(labels),
        table=table,
        draw=lambda rows: alt.Chart(rows, title=labels[0]).mark_bar().encode(x="score", y="label"),
    )
    drawn = ElementTree.fromstring(hostile.svg())
    words = [text for element in drawn.iter() for text in (element.text or "").split("\n")]
    assert {"a\u2408b", "a\u241b[31mb", "a\ufffdb", "a\u2400b"} <= set(words)
    assert hostile.png().startswith(b"\x89PNG")


@pytest.mark.parametrize("text", CONTROLS)
def test_data_cannot_drive_the_terminal(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    print_line(f"a{text}b")
    print_table(["label"], [[f"a{text}b"]])
    print_json({f"label{text}": [f"a{text}b"]})
    out = capsys.readouterr().out
    assert text not in out
    assert json.loads(out[out.index("{") :]) == {f"label{text}": [f"a{text}b"]}


@given(st.text())
def test_safe_text_has_no_control_characters(text: str) -> None:
    shown = safe(text)
    assert not [sign for sign in shown if (ord(sign) < 32 and sign not in "\t\n") or 127 <= ord(sign) < 160]
