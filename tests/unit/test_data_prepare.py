"""From [data] to splits: gate, filter, sample, leaks, audit, and what is written."""

from __future__ import annotations

import csv
import json

import numpy as np
import pyarrow.parquet
import pytest

from fleetune.data.audit import length_histogram
from fleetune.data.config import DataConfig
from fleetune.data.gate import TooManyBadRowsError
from fleetune.data.prepare import Prepared, prepare
from fleetune.errors import DataError


def write(path, rows, header=("text", "label")):
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def numbered(number, labels=("a", "b"), prefix="text"):
    return [(f"{prefix} {row}", labels[row % len(labels)]) for row in range(number)]


def prepared(base, **settings) -> Prepared:
    return prepare(DataConfig(**settings), base)


def texts_of(result, split):
    return [result.dataset.texts[index] for index in result.dataset.splits[split]]


def test_paths_are_relative_to_the_recipe(tmp_path):
    (tmp_path / "sub").mkdir()
    write(tmp_path / "sub" / "file.csv", numbered(20))
    result = prepared(tmp_path, path="sub/file.csv")
    assert result.dataset.sources == ["sub/file.csv"]
    assert result.dataset.place(0) == "sub/file.csv:2"
    assert [result.audit.train, result.audit.validation, result.audit.test] == [16, 2, 2]


def test_the_same_recipe_gives_the_same_data_and_another_seed_another_split(tmp_path):
    write(tmp_path / "file.csv", numbered(40))
    hashes = [prepared(tmp_path, path="file.csv", split={"seed": seed}).dataset.content_hash() for seed in (0, 0, 1)]
    assert hashes[0] == hashes[1] != hashes[2]


def test_words_for_missing_values_are_texts_and_labels(tmp_path):
    rows = [(text, label) for label in ("None", "nan") for text in (f"NA {label}", f"null {label}", f"#N/A {label}")]
    write(tmp_path / "file.csv", [*rows, ("NA", "nan"), ("null", "None")])
    result = prepared(tmp_path, path="file.csv")
    assert result.dataset.texts[-2:] == ["NA", "null"]
    assert result.dataset.label_names == ["None", "nan"]


def test_the_gate_names_the_first_three_and_keeps_the_list(tmp_path):
    write(tmp_path / "file.csv", [*numbered(9), ("", "a"), ("x", ""), ("", "a"), ("", "b")])
    with pytest.raises(TooManyBadRowsError) as caught:
        prepared(tmp_path, path="file.csv", max_bad_rows=3)
    message = str(caught.value)
    assert "4 of 13 records are bad, and max_bad_rows is 3" in message
    assert "file.csv:11: empty text; file.csv:12: missing label; file.csv:13: empty text; …" in message
    assert "max_bad_rows = 4" in message
    assert [bad.line for bad in caught.value.quarantine] == [11, 12, 13, 14]
    result = prepared(tmp_path, path="file.csv", max_bad_rows=4)
    assert (result.audit.records, result.audit.accepted, result.audit.quarantined) == (13, 9, 4)
    assert result.audit.reasons == {"empty text": 3, "missing label": 1}


def test_rows_that_where_leaves_out_are_counted_apart(tmp_path):
    rows = [
        (f"text {row}", "ab"[row % 2], value) for row, value in enumerate(["1", "0.95", "0.9", "0.5", "", " ", "high"])
    ]
    write(tmp_path / "file.csv", [*rows, ("", "", "0.1"), ("", "a", "1")], ("text", "label", "confidence"))
    result = prepared(tmp_path, path="file.csv", where={"confidence": ">= 0.9"}, max_bad_rows=2)
    assert (result.audit.records, result.audit.accepted, result.audit.quarantined, result.audit.filtered) == (
        5,
        3,
        2,
        4,
    )
    assert [bad.reason for bad in result.quarantine] == [
        "column 'confidence' has 'high' where [data] where needs a number",
        "empty text",
    ]


@pytest.mark.parametrize(
    ("wanted", "kept"),
    [
        ("en", "en"),
        ("== en", "en"),
        ("!= en", "de 1 1.0 true 0 false 0.0"),
        (1, "1 1.0"),
        (1.0, "1 1.0"),
        (True, "1 1.0 true"),
        (False, "0 false 0.0"),
        ("== 0", "0 0.0"),
    ],
)
def test_where_by_equality(tmp_path, wanted, kept):
    values = ["en", " de ", "1", "1.0", "true", "0", "false", "0.0", "", "  "]
    rows = [(f"{value.strip()} {label}", label, value) for value in values for label in "ab"]
    write(tmp_path / "file.csv", rows, ("text", "label", "column"))
    result = prepared(tmp_path, path="file.csv", where={"column": wanted})
    assert result.dataset.texts == [f"{value} {label}" for value in kept.split() for label in "ab"]
    assert result.audit.filtered == 20 - len(result.dataset)


@pytest.mark.parametrize(
    ("wanted", "kept"), [("<1", "0 0.5"), ("> 0.5", "1 2e0"), (">=1", "1 2e0"), ("<= .5", "0 0.5")]
)
def test_where_by_bound(tmp_path, wanted, kept):
    rows = [(f"{value} {label}", label, value) for value in ["0", "0.5", "1", "2e0", "nan"] for label in "ab"]
    write(tmp_path / "file.csv", rows, ("text", "label", "column"))
    result = prepared(tmp_path, path="file.csv", where={"column": wanted})
    assert result.dataset.texts == [f"{value} {label}" for value in kept.split() for label in "ab"]


def test_a_filter_that_leaves_nothing_says_so(tmp_path):
    write(tmp_path / "file.csv", [("x", "a", "1")], ("text", "label", "n"))
    with pytest.raises(DataError, match="leaves no usable text"):
        prepared(tmp_path, path="file.csv", where={"n": "> 5"})


def test_duplicates_and_conflicts_are_counted_and_stay_together(tmp_path):
    rows = [(f"Text number {row % 20}  ", "ab"[row % 2]) for row in range(60)]
    write(tmp_path / "file.csv", [*rows, ("TEXT number 0", "b"), ("see http://a/b", "a"), ("see https://c", "a")])
    result = prepared(tmp_path, path="file.csv", split={"validation": 0.2, "test": 0.2})
    assert result.audit.duplicates == 42
    assert result.audit.conflicts == 1
    assert result.audit.leaks == 0
    groups = [{text.strip().lower() for text in texts_of(result, split)} for split in ("train", "validation", "test")]
    assert not groups[0] & groups[1]
    assert not groups[0] & groups[2]
    assert not groups[1] & groups[2]


def three_files(folder, test_rows):
    write(folder / "train.csv", numbered(20))
    write(folder / "test.csv", test_rows)
    return {"train": "train.csv", "test": "test.csv"}


def test_leaks_between_files_are_an_error_with_an_example(tmp_path):
    files = three_files(tmp_path, [("fresh", "a"), ("TEXT  7", "b"), ("text 3", "b")])
    with pytest.raises(DataError, match=r"2 of test, such as test\.csv:3 = train\.csv:9") as caught:
        prepared(tmp_path, **files, split={"validation": 0.0})
    assert 'leaks = "drop"' in str(caught.value)


def test_leaks_are_dropped_from_the_test_or_allowed(tmp_path):
    files = three_files(tmp_path, [("fresh", "a"), ("TEXT  7", "b"), ("other", "b")])
    dropped = prepared(tmp_path, **files, leaks="drop", split={"validation": 0.0})
    assert texts_of(dropped, "test") == ["fresh", "other"]
    assert (dropped.audit.leaks, dropped.audit.dropped, dropped.audit.accepted, dropped.audit.train) == (1, 1, 23, 20)
    assert dropped.dataset.lines[dropped.dataset.splits["test"]].tolist() == [2, 4]
    allowed = prepared(tmp_path, **files, leaks="allow", split={"validation": 0.0})
    assert texts_of(allowed, "test") == ["fresh", "TEXT  7", "other"]
    assert (allowed.audit.leaks, allowed.audit.dropped) == (1, 0)
    assert any("also stand in training" in warning for warning in allowed.audit.warnings)


def test_near_leaks_are_a_warning(tmp_path):
    long = "the quick brown fox jumps over the lazy dog and runs away into the deep dark forest number"
    write(tmp_path / "train.csv", [*numbered(20), (f"{long} one", "a")])
    write(tmp_path / "test.csv", [(f"{long} two", "a"), ("something else entirely", "b")])
    result = prepared(tmp_path, train="train.csv", test="test.csv", split={"validation": 0.0})
    assert result.audit.leaks == 0
    assert result.audit.near_leaks == {"validation": 0, "test": 1}
    assert "test.csv:2 and train.csv:22" in " ".join(result.audit.warnings)


def test_validation_comes_from_training_where_there_is_no_file_for_it(tmp_path):
    files = three_files(tmp_path, numbered(6, prefix="other"))
    result = prepared(tmp_path, **files)
    assert [result.audit.train, result.audit.validation, result.audit.test] == [18, 2, 6]
    write(tmp_path / "validation.csv", numbered(4, prefix="third"))
    given = prepared(tmp_path, **files, validation="validation.csv")
    assert [given.audit.train, given.audit.validation, given.audit.test] == [20, 4, 6]
    alone = prepared(tmp_path, train="train.csv")
    assert [alone.audit.train, alone.audit.validation, alone.audit.test] == [18, 2, 0]


def test_a_label_that_stands_in_the_test_alone_is_an_error(tmp_path):
    files = three_files(tmp_path, [("fresh", "c"), ("other", "a")])
    with pytest.raises(DataError, match=r"label 'c' stands in validation or test \(1 times\) and in no training text"):
        prepared(tmp_path, **files)


def test_a_sample_is_a_share_or_a_number(tmp_path):
    write(tmp_path / "file.csv", numbered(200))
    for sample in (0.25, 50):
        audit = prepared(tmp_path, path="file.csv", sample=sample).audit
        assert audit.accepted == 200
        assert audit.sampled_out == 150
        assert [audit.train, audit.validation, audit.test] == [40, 5, 5]
        assert audit.class_counts["train"] == {"a": 20, "b": 20}
    assert prepared(tmp_path, path="file.csv", sample=1.0).audit.sampled_out == 0
    more = prepared(tmp_path, path="file.csv", sample=1000).audit
    assert more.sampled_out == 0
    assert "asks for more than the 200 texts" in more.notes[0]


def test_a_sample_thins_out_each_given_split(tmp_path):
    files = three_files(tmp_path, numbered(10, prefix="other"))
    audit = prepared(tmp_path, **files, sample=0.5, split={"validation": 0.0}).audit
    assert [audit.train, audit.test] == [10, 5]


def test_a_sample_too_small_for_the_classes_says_so(tmp_path):
    write(tmp_path / "file.csv", numbered(30, labels=("a", "b", "c")))
    with pytest.raises(DataError, match="sample = 2 leaves no training text"):
        prepared(tmp_path, path="file.csv", sample=2)


def test_a_column_of_measurements_is_no_label(tmp_path):
    write(tmp_path / "file.csv", [(f"text {row}", row / 7) for row in range(300)])
    with pytest.raises(DataError, match="300 different values in 300 texts"):
        prepared(tmp_path, path="file.csv")


def test_several_columns_make_it_multi_label(tmp_path):
    flags = [("1", "0"), ("0", "1.0"), ("true", "False"), ("0", "0"), ("1", "1"), ("2", "0"), ("", "1")]
    write(tmp_path / "file.csv", [(f"text {row}", *pair) for row, pair in enumerate(flags)], ("text", "x", "y"))
    result = prepared(tmp_path, path="file.csv", label=["x", "y"], max_bad_rows=2, split={"validation": 0, "test": 0})
    assert result.dataset.labels.tolist() == [[1, 0], [0, 1], [1, 0], [0, 0], [1, 1]]
    assert result.dataset.label_names == ["x", "y"]
    assert result.audit.unlabelled == {"train": 1, "validation": 0, "test": 0}
    assert [bad.reason for bad in result.quarantine] == [
        "unknown label: column 'x' has '2', not 0 or 1",
        "missing label",
    ]


def test_a_separator_makes_it_multi_label(tmp_path):
    write(tmp_path / "file.csv", [("t1", "b | a"), ("t2", "a|a|"), ("t3", "c"), ("t4", "|"), ("t5", "")])
    result = prepared(
        tmp_path, path="file.csv", label_separator="|", max_bad_rows=2, split={"validation": 0, "test": 0}
    )
    assert result.dataset.label_names == ["b", "a", "c"]
    assert result.dataset.labels.tolist() == [[1, 1, 0], [0, 1, 0], [0, 0, 1]]
    assert [(bad.line, bad.reason) for bad in result.quarantine] == [(5, "missing label"), (6, "missing label")]


def test_pairs_need_both_texts(tmp_path):
    write(
        tmp_path / "file.csv",
        [("a", "b", "x"), ("c", "", "y"), ("", "d", "y"), ("e", "f", "y")],
        ("one", "two", "label"),
    )
    result = prepared(tmp_path, path="file.csv", text=["one", "two"], max_bad_rows=2)
    assert result.dataset.texts == ["a", "e"]
    assert result.dataset.pairs == ["b", "f"]
    assert [bad.line for bad in result.quarantine] == [3, 4]


def test_a_missing_column_names_the_nearest(tmp_path):
    write(tmp_path / "file.csv", numbered(4), ("Review", "label"))
    with pytest.raises(DataError, match="no column 'reviews'; did you mean 'Review'") as caught:
        prepared(tmp_path, path="file.csv", text="reviews")
    assert "'Review', 'label'" in str(caught.value)


@pytest.mark.parametrize(("path", "expected"), [("none.csv", "does not exist"), (".", "not one saved by datasets")])
def test_a_wrong_path_is_a_data_error(tmp_path, path, expected):
    with pytest.raises(DataError, match=expected):
        prepared(tmp_path, path=path)


def test_what_is_written_can_be_read_back(tmp_path):
    write(tmp_path / "=file.csv", [*numbered(30), ("", "a"), ('=HYPERLINK("x")', "c?")])
    result = prepared(tmp_path, path="=file.csv", max_bad_rows=2, labels=["a", "b"])
    folder = tmp_path / "out" / "data"
    result.write(folder, result.audit.with_tokens(np.full(30, 7, dtype=np.int32), 5))
    assert sorted(path.name for path in folder.iterdir()) == ["audit.json", "quarantine.csv", "splits.parquet"]
    audit = json.loads((folder / "audit.json").read_text(encoding="utf-8"))
    assert audit["truncated"] == 30
    needed = "name records accepted quarantined duplicates leaks conflicts train validation test labels truncated"
    assert set(needed.split()) <= set(audit)
    with (folder / "quarantine.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["file", "line", "reason", "excerpt"]
    assert rows[1] == ["'=file.csv", "32", "empty text", ""]
    assert rows[2][3] == '\'=HYPERLINK("x")'
    splits = pyarrow.parquet.read_table(folder / "splits.parquet").to_pylist()
    for split, indices in result.dataset.splits.items():
        assert [row["index"] for row in splits if row["split"] == split] == indices.tolist()
    assert {row["source"] for row in splits} == {"=file.csv"}
    assert splits[0]["line"] == result.dataset.lines[splits[0]["index"]]


def test_a_histogram_counts_every_text():
    histogram = length_histogram(np.array([1, 2, 2, 40, 130], dtype=np.int32))
    assert sum(histogram["counts"]) == 5
    assert len(histogram["edges"]) == len(histogram["counts"]) + 1
    assert histogram["edges"][-1] > histogram["max"] == 130
    assert length_histogram(np.array([], dtype=np.int32))["counts"] == []


def test_past_a_number_of_bad_rows_they_are_counted_and_not_listed(tmp_path, monkeypatch):
    monkeypatch.setattr("fleetune.data.table.MOST_QUARANTINED", 5)
    write(tmp_path / "file.csv", [*numbered(20), *([("short",)] * 7), ("", "a"), ("x", ""), ("y", "")])
    with pytest.raises(TooManyBadRowsError) as caught:
        prepared(tmp_path, path="file.csv", max_bad_rows=9)
    assert "10 of 30 records are bad, and max_bad_rows is 9: file.csv:22: ragged row" in str(caught.value)
    assert "max_bad_rows = 10" in str(caught.value)
    result = prepared(tmp_path, path="file.csv", max_bad_rows=10)
    assert (result.audit.records, result.audit.accepted, result.audit.quarantined) == (30, 20, 10)
    assert result.audit.reasons == {"ragged row": 7, "missing label": 2, "empty text": 1}
    assert [bad.line for bad in result.quarantine] == [22, 23, 24, 25, 26]
    result.write(tmp_path / "out")
    with (tmp_path / "out" / "quarantine.csv").open(newline="") as file:
        *listed, last = list(csv.reader(file))
    assert len(listed) == 6
    assert last[2] == "5 more bad records are not listed: 2 ragged row, 2 missing label, 1 empty text"


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("[" + "[]," * 100_000 + "[]]", "not a JSON object but a list"),
        ('{"text": "x", "label": "a", "other": [' + "[]," * 100_000 + "[]]}", "over 20,000 values in one record"),
        ('{"text": [' + "[]," * 1_000 + '[]], "label": "a"}', "the text is a list"),
        ('{"text": {"a": [' + "[]," * 1_000 + '[]]}, "label": "a"}', "the text is a dict"),
        ('{"text": "x", "label": [' + "[]," * 1_000 + "[]]}", "unknown label: the list"),
        ('{"text": "x", "label": [' + '"a",' * 11_000 + '"a"]}', "unknown label: the list"),
    ],
    ids=["list", "unwanted", "text", "object", "nested labels", "many labels"],
)
def test_json_of_many_values_is_a_bad_row(tmp_path, row, reason):
    good = "".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in numbered(20))
    (tmp_path / "file.jsonl").write_text(good + row + "\n")
    result = prepared(tmp_path, path="file.jsonl", max_bad_rows=1)
    assert [(bad.line, bad.reason[: len(reason)]) for bad in result.quarantine] == [(21, reason)]


def test_a_long_text_in_json_is_no_row_of_many_values(tmp_path):
    rows = [*numbered(20), ('[{,\\"' * 100_000, "a")]
    (tmp_path / "file.jsonl").write_text("".join(json.dumps({"text": a, "label": b}) + "\n" for a, b in rows))
    assert prepared(tmp_path, path="file.jsonl").audit.accepted == 21
