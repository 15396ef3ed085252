"""CSV, record by record."""

from __future__ import annotations

import pytest

from fleetune.data.csv_reader import CsvText, Dialect, find_dialect


def fields_of(
    text: str, dialect: Dialect | None = None, label_column: int | None = None
) -> list[tuple[int, list[str]]]:
    records = list(CsvText(text, dialect or Dialect()).records(label_column))
    return [(record.line, record.fields) for record in records if not record.problem]


def problems_of(text: str, label_column: int | None = None) -> list[tuple[int, str]]:
    records = list(CsvText(text, Dialect()).records(label_column))
    return [(record.line, record.problem) for record in records if record.problem]


@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
def test_a_record_is_placed_at_the_line_where_it_begins(line_end):
    text = line_end.join(["a,b", '"one', "", 'two",x', "", "three,y", ""])
    assert fields_of(text) == [(2, [f"one{line_end}{line_end}two", "x"]), (6, ["three", "y"])]


def test_only_carriage_return_and_line_feed_end_a_line():
    text = "a,b\none\x0btwo\x0cthree\x1c\x85\u2028\u2029,x\n"
    assert fields_of(text) == [(2, ["one\x0btwo\x0cthree\x1c\x85\u2028\u2029", "x"])]


def test_a_quotation_mark_within_an_unquoted_field_is_a_letter():
    assert fields_of('a,b\n5" disk,say "x"\n') == [(2, ['5" disk', 'say "x"'])]


def test_empty_fields_at_the_end_count():
    assert fields_of('a,b,c\n"x",,\n,,"x"\n"x","y",\n') == [(2, ["x", "", ""]), (3, ["", "", "x"]), (4, ["x", "y", ""])]


def test_a_ragged_row_says_how_many_fields_it_has():
    assert problems_of("a,b\n1\n1,2\n1,2,3\n") == [
        (2, "ragged row: 1 field, the header has 2"),
        (4, "ragged row: 3 fields, the header has 2"),
    ]


def test_an_unclosed_quote_costs_its_own_line_only():
    text = 'a,b\n"open,x\nfine,y\n"also, fine",z\n'
    assert problems_of(text) == [(2, "unbalanced quote: text follows the closing one")]
    assert fields_of(text) == [(3, ["fine", "y"]), (4, ["also, fine", "z"])]


def test_a_stray_quote_that_a_later_one_closes_is_found_by_the_records_between():
    text = 'label,text\nneg,first\npos,"bad\nneg,fine\npos,fine too\nneg,good"\npos,last\n'
    assert [line for line, _ in problems_of(text, label_column=0)] == [3]
    assert [fields[1] for _, fields in fields_of(text, label_column=0)] == [
        "first",
        "fine",
        "fine too",
        'good"',
        "last",
    ]


@pytest.mark.parametrize(
    "text",
    [
        'label,text\npos,"one\nand, two\nneg, three"\nneg,x\npos,y\n',
        'text,label\n"one\ntwo, neg",pos\nx,neg\ny,pos\n',
        'text,label\n"one, neg, two\nthree",pos\nx,neg\ny,pos\n',
    ],
)
def test_lines_of_a_text_are_not_taken_for_records_unless_all_of_them_look_so(text):
    column = text.split("\n")[0].split(",").index("label")
    assert fields_of(text, label_column=column) == fields_of(text)
    assert not problems_of(text, label_column=column)


def test_labels_known_beforehand_tell_records_too():
    records = list(CsvText('label,text\npos,"bad\nneg,good"\n', Dialect()).records(0, ["pos", "neg"]))
    assert [(record.line, record.problem[:16]) for record in records] == [(2, "unbalanced quote"), (3, "")]


def test_nul_is_reported_in_its_record_alone():
    assert problems_of("a,b\n1,2\n1\0,2\n1,2\n") == [(3, "NUL byte")]


def test_many_unclosed_quotes_take_linear_time():
    records = list(CsvText("a,b\n" + '"open,x\n' * 50_000, Dialect()).records(1))
    assert len(records) == 50_000
    assert all(record.problem for record in records)


def test_a_file_without_quotes_takes_quotation_marks_as_letters():
    assert fields_of('a\tb\n"x\ty"\n', Dialect("\t", quote="")) == [(2, ['"x', 'y"'])]


def test_an_escape_character_frees_the_next_one():
    text = 'a,b\n"say \\"x\\", \\\\",y\n'
    assert fields_of(text, Dialect(escape="\\")) == [(2, ['say "x", \\', "y"])]


@pytest.mark.parametrize(
    ("text", "wanted", "delimiter"),
    [
        ("text,label\na;b,c\n", ["text", "label"], ","),
        ("text;label\n1,5;x\n2,5;y\n", ["text", "label"], ";"),
        ("text\tlabel\na, b\tx\n", ["text", "label"], "\t"),
        ("text|label\na, b|x\n", ["text", "label"], "|"),
        ("a;b\n1;2\n3;4\n", [], ";"),
        ('"a;b";c\n"1,1";2\n', [], ";"),
        ("a,b\n1;1;1,2\n", [], ","),
        ("sep=;\na,x;b\n", [], ";"),
        ("", [], ","),
    ],
)
def test_the_delimiter_is_found(text, wanted, delimiter):
    assert find_dialect(text, wanted).delimiter == delimiter


def test_spaces_after_the_delimiter_are_skipped_where_the_header_has_them():
    text = 'text, label\n"a, b", x\nc, "y"\n'
    assert fields_of(text, find_dialect(text, ["text", "label"])) == [(2, ["a, b", "x"]), (3, ["c", "y"])]


def test_a_line_that_announces_the_separator_is_no_header():
    text = "sep=;\na;b\n1;2\n"
    parsed = CsvText(text, find_dialect(text, []))
    assert parsed.header is not None
    assert parsed.header.fields == ["a", "b"]
    assert [(record.line, record.fields) for record in parsed.records()] == [(3, ["1", "2"])]
