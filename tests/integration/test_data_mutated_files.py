"""Files with every fault of practice: each gives the right texts or a clear message, and loses no record."""

from __future__ import annotations

import codecs
import csv
import io
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fleetune.data.csv_reader import CsvText, Dialect
from fleetune.data.prepare import Prepared
from fleetune.errors import DataError, FleetuneError
from tests.data_files import (
    BAD_ROWS,
    FIELD_LIMIT,
    LABELS,
    TEXTS,
    LabelledFile,
    Row,
    assert_conserved,
    assert_gate_holds,
    assert_read_right,
    good_rows,
    read,
)

MUTATED = settings(
    max_examples=250,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
FEWER = settings(MUTATED, max_examples=100)

EACH_LABEL = [Row(f"text of {label}", label) for label in LABELS]

FILES = st.builds(
    LabelledFile,
    rows=st.builds(
        list.__add__,
        st.lists(st.one_of(good_rows(), good_rows(), BAD_ROWS), max_size=14),
        st.sampled_from([[], EACH_LABEL, EACH_LABEL, EACH_LABEL]),
    ),
    delimiter=st.sampled_from([",", "\t", ";", "|"]),
    line_end=st.sampled_from(["\n", "\r\n", "\r"]),
    quote_all=st.booleans(),
    blank_lines=st.booleans(),
    last_line_end=st.booleans(),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"]),
)


@MUTATED
@given(FILES)
def test_a_mutated_csv_file_gives_exactly_its_good_records(tmp_path, file):
    path = tmp_path / "file.csv"
    path.write_bytes(file.content())
    result = read(path)
    assert_read_right(result, file)
    assert_gate_holds(path, len(file.bad_places))


@MUTATED
@given(FILES, st.data())
def test_any_bytes_give_a_clear_message_or_conserved_records(tmp_path, file, data):
    content = bytearray(file.content())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content)))
        match data.draw(st.sampled_from(["insert", "delete", "cut", "replace"])):
            case "insert":
                content[at:at] = data.draw(
                    st.sampled_from([b'"', b"\0", b"\xff", b",", b"\n", b"\r", b"\xef\xbb\xbf", b"'"])
                )
            case "delete":
                del content[at : at + data.draw(st.integers(1, 5))]
            case "cut":
                del content[at:]
            case _:
                content[at : at + 1] = bytes([data.draw(st.integers(0, 255))])
    path = tmp_path / "file.csv"
    path.write_bytes(bytes(content))
    result = read(path, encoding_errors=data.draw(st.sampled_from(["strict", "replace"])))
    if isinstance(result, Prepared):
        assert_conserved(result)
        places = [*result.dataset.lines.tolist(), *(bad.line for bad in result.quarantine)]
        assert len(set(places)) == len(places), "two records begin on one line"


@MUTATED
@given(
    st.lists(st.lists(st.text(',;"\n\r\t ab', max_size=8), min_size=3, max_size=3), min_size=1, max_size=8),
    st.sampled_from([",", ";", "\t"]),
    st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
)
def test_what_the_standard_library_writes_is_read_back(rows, delimiter, quoting):
    out = io.StringIO(newline="")
    csv.writer(out, delimiter=delimiter, quoting=quoting).writerows([["a", "b", "c"], *rows])
    records = list(CsvText(out.getvalue(), Dialect(delimiter)).records())
    assert [record.fields for record in records] == rows
    assert not any(record.problem for record in records)


JSON_FAULTS = st.sampled_from(
    [
        ('{"text": "a", "label": "positive"', "malformed JSON"),
        ('{"text": "a" "label": "positive"}', "malformed JSON"),
        ("text,label", "malformed JSON"),
        ('{"text": "a\0", "label": "positive"}', "NUL byte"),
        ('{"text": "a\\u0000", "label": "positive"}', "NUL byte"),
        ('{"text": "\\ud800", "label": "positive"}', "half of a surrogate pair"),
        ('["a", "positive"]', "not a JSON object"),
        ("NaN", "not a JSON object"),
        ("null", "not a JSON object"),
        ('"text"', "not a JSON object"),
        ("[" * 100_000, "malformed JSON"),
        ("9" * 5_000, "malformed JSON"),
        ('{"label": "positive"}', "empty text"),
        ('{"text": null, "label": "positive"}', "empty text"),
        ('{"text": NaN, "label": "positive"}', "empty text"),
        ('{"text": " ", "label": "positive"}', "empty text"),
        ('{"text": {"a": 1}, "label": "positive"}', "the text is a dict"),
        ('{"text": ["a"], "label": "positive"}', "the text is a list"),
        ('{"text": "a"}', "missing label"),
        ('{"text": "a", "label": null}', "missing label"),
        ('{"text": "a", "label": NaN}', "missing label"),
        ('{"text": "a", "label": ""}', "missing label"),
        ('{"text": "a", "label": {"b": 1}}', "unknown label"),
        ('{"text": "a", "label": 3}', "unknown label"),
        (json.dumps({"text": "a" * (FIELD_LIMIT + 1), "label": "positive"}), "field over"),
    ]
)


@MUTATED
@given(
    st.lists(
        st.one_of(good_rows(), good_rows(), JSON_FAULTS.map(lambda fault: Row("", "", fault[1], fault[0]))), max_size=12
    ).map(lambda rows: rows + EACH_LABEL),
    st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
    st.sampled_from(["\n", "\r\n"]),
    st.booleans(),
)
def test_a_mutated_jsonl_file_gives_exactly_its_good_records(tmp_path, rows, encoding, line_end, ascii_only):
    file = LabelledFile(rows, lines=list(range(1, len(rows) + 1)))
    written = [row.raw or json.dumps({"text": row.text, "label": row.label}, ensure_ascii=ascii_only) for row in rows]
    path = tmp_path / "file.jsonl"
    path.write_bytes("".join(line + line_end for line in written).encode(encoding))
    assert_read_right(read(path), file)
    assert_gate_holds(path, len(file.bad_places))


@FEWER
@given(
    st.lists(good_rows(TEXTS.filter(lambda text: "\n" not in text and "\r" not in text)), min_size=3, max_size=8),
    st.data(),
)
def test_undecodable_bytes_are_reported_with_their_lines(tmp_path, rows, data):
    at = data.draw(st.integers(0, len(rows)))
    rows = [*rows[:at], Row("torn text", "positive"), *rows[at:], *EACH_LABEL]
    path = tmp_path / "file.csv"
    path.write_bytes(LabelledFile(rows).content().replace(b"torn", b"to\xffrn"))
    strict = read(path)
    assert isinstance(strict, DataError)
    assert f"1 line with undecodable bytes (line {at + 2})" in str(strict)
    assert "encoding" in str(strict)
    replaced = read(path, encoding_errors="replace")
    assert isinstance(replaced, Prepared)
    assert replaced.dataset.texts == [row.text.replace("torn", "to\ufffdrn") for row in rows]
    assert any("U+FFFD" in note for note in replaced.audit.notes)


@pytest.mark.parametrize(
    "raw",
    [
        "x" * 10_000_000 + ",positive",
        '"' + "x\n" * 5_000_000 + '",positive',
        '"' + '""\n' * 3_000_000 + '",positive',
        '"' + "x" * 10_000_000 + ",positive",
    ],
    ids=["plain", "quoted lines", "doubled quotes", "unbalanced"],
)
def test_a_field_of_ten_megabytes_is_one_bad_record(tmp_path, raw):
    file = LabelledFile([Row(f"text {label}", label) for label in LABELS])
    content = file.content().decode() + raw + "\nlast,positive\n"
    path = tmp_path / "file.csv"
    path.write_text(content, encoding="utf-8")
    result = read(path, max_field_characters=1_000_000)
    assert isinstance(result, Prepared)
    assert [bad.line for bad in result.quarantine] == [5]
    assert result.dataset.texts[-1] == "last"
    assert len(result.quarantine[0].excerpt) <= 200


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "is empty"),
        (b"\xef\xbb\xbf", "is empty"),
        (b"\n\r\n\n", "is empty"),
        (b"text,label\n", "no records"),
        (b"text,label", "no records"),
        (b"text,text,label\na,b,c\n", "stands 2 times"),
        (b"Text,Label\na,b\n", "did you mean 'Text'?"),
        (b"texts;labels\na;b\n", "Its columns are 'texts', 'labels'"),
        (b"te\0xt,label\na,b\n", "NUL byte"),
        (b'"text,label\na,b\n', "header cannot be read"),
        (b"text,label\na,positive\nb,positive\n", "all 2 texts have the label 'positive'"),
        (b"text,label\na,positive\nb,negative\n", "no text has the label 'neutral'"),
        (b"text,label\na,\nb,\n", "all 2 records are bad"),
        (b"text,label\na,bad\nb,worse\n", "all 2 records are bad"),
        (b"PAR1 is not enough", "cannot be read as Parquet"),
        (b"\x1f\x8b\x08\0", "is compressed (gzip)"),
        (codecs.BOM_UTF16_LE + b"t", "not UTF-16"),
    ],
)
def test_a_hopeless_file_says_what_is_wrong_with_it(tmp_path, content, expected):
    path = tmp_path / "file.csv"
    path.write_bytes(content)
    result = read(path)
    assert isinstance(result, FleetuneError)
    assert expected in str(result)


def test_a_file_of_one_class_is_refused(tmp_path):
    path = tmp_path / "file.csv"
    path.write_bytes(LabelledFile([Row(f"text {number}", "positive") for number in range(9)]).content())
    result = read(path, labels=None)
    assert isinstance(result, DataError)
    assert "all 9 texts have the label 'positive'" in str(result)
