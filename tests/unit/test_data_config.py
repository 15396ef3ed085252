"""What a recipe may say about data."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from fleetune.data.config import DataConfig


def config(**fields):
    return DataConfig.model_validate(fields)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, "exactly one of path, train or hf"),
        ({"path": "a", "hf": "b"}, "exactly one of path, train or hf"),
        ({"path": "a", "test": "b"}, "go with train"),
        ({"path": "a", "revision": "main"}, "revision goes with hf"),
        ({"path": "a", "text": ["a", "b", "c"]}, "pair of columns; got 3"),
        ({"path": "a", "label": []}, "empty list"),
        ({"path": "a", "label": ["a"], "label_separator": "|"}, "not both"),
        ({"path": "a", "label_separator": ""}, "at least one character"),
        ({"path": "a", "labels": ["x", "x"]}, "listed twice"),
        ({"path": "a", "delimiter": "::"}, "one character"),
        ({"path": "a", "delimiter": ""}, "one character"),
        ({"path": "a", "quote": "\n"}, "one character"),
        ({"path": "a", "encoding": "utf-9"}, "no encoding is called 'utf-9'"),
        ({"path": "a", "encoding": "base64"}, "no encoding is called 'base64'"),
        ({"path": "a", "where": {"c": ">= much"}}, "needs a number after >="),
        ({"path": "a", "sample": 1.5}, "without point; got 1.5"),
        ({"path": "a", "sample": 0}, "at least 1"),
        ({"path": "a", "split": {"validation": 0.5, "test": 0.5}}, "leave no texts to train on"),
        ({"path": "a", "max_bad_rows": -1}, "greater than or equal to 0"),
        ({"path": "a", "separator": ";"}, "Extra inputs"),
    ],
)
def test_a_wrong_setting_is_refused(fields, expected):
    with pytest.raises(ValidationError, match=expected):
        config(**fields)


def test_columns_are_listed_once_each():
    found = config(path="a", text=["a", "b"], label="c", where={"b": "x", "d": ">= 1"})
    assert found.columns == ["a", "b", "c", "d"]


@pytest.mark.parametrize("written", ["\t", "\\t", "tab"])
def test_a_tab_may_be_written_as_people_write_it(written):
    assert config(path="a", delimiter=written).delimiter == "\t"


def test_labels_may_be_written_as_numbers():
    assert config(path="a", labels=[0, 1]).labels == ["0", "1"]


def test_a_number_and_a_share_are_told_apart():
    assert isinstance(config(path="a", sample=1).sample, int)
    assert isinstance(config(path="a", sample=1.0).sample, float)
