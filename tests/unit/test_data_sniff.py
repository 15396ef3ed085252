"""A look at files that nobody has described."""

from __future__ import annotations

import json

import pyarrow
import pyarrow.parquet
import pytest

from fleetune.data.config import DataConfig
from fleetune.data.prepare import prepare
from fleetune.data.sniff import look
from fleetune.errors import DataError


def assert_runs(found):
    """The settings must read the file as they are: that is what a recipe is made from."""
    audit = prepare(DataConfig(**found.settings)).audit
    assert audit.quarantined == found.settings.get("max_bad_rows", 0)
    return audit


def sentences(number):
    return [f"this is the sentence with number {row} and {row * 7} words" for row in range(number)]


@pytest.mark.parametrize(
    ("header", "row", "text", "label"),
    [
        ("id,review,sentiment", "{n},{text},{ab}", "review", "sentiment"),
        ("Category,Message", "{ab},{text}", "Message", "Category"),
        ("text,stars", "{text},{n5}", "text", "stars"),
        ("what,ever", "{text},{ab}", "what", "ever"),
        ("author,note,kind", "{n5}x,{text},{ab}", "note", "kind"),
        ("text,confidence,label", "{text},0.{n},{ab}", "text", "label"),
        ("idx,sentence1,sentence2,score", "{n},{text},other {text},{n5}", ["sentence1", "sentence2"], "score"),
        ("premise,hypothesis,gold", "{text},x {text},{ab}", ["premise", "hypothesis"], "gold"),
        ("text_a,text_b,label", "{text},x {text},{ab}", ["text_a", "text_b"], "label"),
        ("question1,question2,is_duplicate", "{text},x {text},{flag}", ["question1", "question2"], "is_duplicate"),
        ("text,toxic,spam", "{text},{flag},{n3flag}", "text", ["toxic", "spam"]),
        ("text,is_retweet,label", "{text},{flag},{ab}", "text", "label"),
    ],
)
def test_columns_are_told_apart(tmp_path, header, row, text, label):
    lines = [
        row.format(n=n, text=sentence, ab="ab"[n % 2], n5=n % 5, flag=n % 2, n3flag=int(n % 3 == 0))
        for n, sentence in enumerate(sentences(40))
    ]
    path = tmp_path / "file.csv"
    path.write_text("\n".join([header, *lines]), encoding="utf-8")
    found = look(path)
    assert (found.text, found.label, found.rows) == (text, label, 40)
    assert_runs(found)


def test_a_file_made_by_hand(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text(
        'Comment;Mood\n"Great; really";happy\nNo good;sad\nLovely day;happy\nIt rains;sad\n', encoding="utf-8"
    )
    found = look(path)
    assert (found.text, found.label, found.delimiter, found.rows) == ("Comment", "Mood", ";", 4)
    assert assert_runs(found).labels == ["happy", "sad"]


def test_faults_become_settings_with_their_reasons(tmp_path):
    lines = ["text;label", *(f"un café très chaud {n};{'ab'[n % 2]}" for n in range(30)), "torn", ";a"]
    path = tmp_path / "file.csv"
    path.write_bytes("\r\n".join(lines).encode("cp1252"))
    found = look(path)
    assert found.settings["encoding"] == "cp1252"
    assert found.settings["delimiter"] == ";"
    assert found.settings["max_bad_rows"] == 2
    assert "1 ragged row" in found.reasons["max_bad_rows"]
    assert len(found.problems) >= 2
    assert "café" in prepare(DataConfig(**found.settings)).dataset.texts[0]


def test_bytes_of_no_encoding_are_replaced_and_said_so(tmp_path):
    path = tmp_path / "file.csv"
    path.write_bytes(
        b"text,label\n" + b"".join(b"word \x81\x8d %d,%s\n" % (n, b"ab"[n % 2 : n % 2 + 1]) for n in range(9))
    )
    found = look(path)
    assert found.settings["encoding_errors"] == "replace"
    assert "9 lines are not UTF-8" in found.reasons["encoding_errors"]
    assert_runs(found)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig"])
def test_unicode_with_a_mark_needs_no_setting(tmp_path, encoding):
    path = tmp_path / "file.txt"
    path.write_bytes(
        "\n".join(["text\tlabel", *(f"{text}\t{'ab'[len(text) % 2]}" for text in sentences(20))]).encode(encoding)
    )
    found = look(path)
    assert "encoding" not in found.settings
    assert found.delimiter == "\t"
    assert_runs(found)


def test_jsonl_with_lists_of_labels(tmp_path):
    rows = [{"id": n, "body": text, "tags": ["x", "y"][: 1 + n % 2]} for n, text in enumerate(sentences(20))]
    path = tmp_path / "file.jsonl"
    path.write_text("\n".join([*map(json.dumps, rows), "{broken"]), encoding="utf-8")
    found = look(path)
    assert (found.format, found.text, found.label, found.rows) == ("jsonl", "body", "tags", 21)
    assert assert_runs(found).multi_label


def test_parquet(tmp_path):
    path = tmp_path / "file.parquet"
    table = pyarrow.table({"content": sentences(30), "rating": [n % 3 for n in range(30)]})
    pyarrow.parquet.write_table(table, path)
    found = look(path)
    assert (found.format, found.text, found.label, found.rows) == ("parquet", "content", "rating", 30)
    assert assert_runs(found).labels == ["0", "1", "2"]


@pytest.mark.parametrize("separator", ["|", ";"])
def test_labels_in_one_cell_are_found(tmp_path, separator):
    cells = [["a", "b"], ["c"], ["b", "c"], ["a"]]
    lines = [f"{text}\t{separator.join(cells[n % 4])}" for n, text in enumerate(sentences(40))]
    path = tmp_path / "file.tsv"
    path.write_text("\n".join(["text\ttopics", *lines]), encoding="utf-8")
    found = look(path)
    assert found.settings["label_separator"] == separator
    assert assert_runs(found).labels == ["a", "b", "c"]


def test_long_texts_ask_for_more_tokens_and_many_for_a_sample(tmp_path):
    path = tmp_path / "file.csv"
    long = "word " * 150
    path.write_text("\n".join(["text,label", *(f"{long}{n},{'ab'[n % 2]}" for n in range(5_200))]), encoding="utf-8")
    found = look(path)
    assert found.settings["max_tokens"] == 256
    assert found.settings["sample"] == 3_000
    assert "5,200" in found.reasons["sample"]


@pytest.mark.parametrize("words", [300, 450])
def test_texts_too_long_for_any_limit_are_offered_windows(tmp_path, words):
    path = tmp_path / "file.csv"
    rows = (f"{'word ' * words}{n},{'ab'[n % 2]}" for n in range(40))
    path.write_text("\n".join(["text,label", *rows]), encoding="utf-8")
    found = look(path)
    assert found.settings["max_tokens"] == 512 and "long_texts" not in found.settings
    assert ('long_texts = "head_tail"' in found.reasons["max_tokens"]) == (words == 450)
    assert ('"windows"' in found.reasons["max_tokens"]) == (words == 450)


def test_what_the_user_says_is_not_guessed(tmp_path):
    path = tmp_path / "file.csv"
    path.write_text(
        "\n".join(["a,b,c", *(f"x{n % 3},{text},{n % 2}" for n, text in enumerate(sentences(20)))]), encoding="utf-8"
    )
    found = look(path, text="b", label="a")
    assert (found.text, found.label) == ("b", "a")
    assert look(path, label="c").text == "b"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("", "is empty"),
        ("text,label\n", "looks like"),
        ("a,b\n1,2\n3,4\n", "no column of file.csv looks like text"),
        ("text,key\nsome words,k1\nmore words,k2\nother words,k3\n", "no column of file.csv looks like labels"),
    ],
)
def test_a_file_without_text_or_labels_says_so(tmp_path, content, expected):
    path = tmp_path / "file.csv"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=expected):
        look(path)


def test_a_file_that_cannot_train_is_described_with_the_reason(tmp_path):
    path = tmp_path / "file.csv"
    path.write_text("text,label\n" + "some words,a\n" * 10, encoding="utf-8")
    found = look(path, label="label")
    assert found.audit is None
    assert "all 10 texts have the label 'a'" in found.problems[-1]
