"""Labels by name and in order."""

from __future__ import annotations

import numpy as np
import pytest

from fleetune.data.config import DataConfig
from fleetune.data.examples import Examples
from fleetune.data.labels import encode_labels, find_labels, plain_number
from fleetune.errors import DataError


def examples(labels, class_names=None):
    number = len(labels)
    texts = [f"text {row}" for row in range(number)]
    return Examples(
        "file.csv", texts=texts, labels=list(labels), lines=list(range(2, number + 2)), class_names=class_names
    )


def encoded(written, class_names=None, **settings):
    source = examples(written, class_names)
    found = find_labels([source], DataConfig.model_validate({"path": "x", **settings}))
    return found.names, encode_labels(source, found), source


def test_numbers_are_in_order_of_value():
    names, indices, _ = encoded(["10", "2", "-1", "10"])
    assert names == ["-1", "2", "10"]
    assert indices.tolist() == [2, 1, 0, 2]


def test_one_and_one_point_zero_are_the_same_label():
    names, indices, _ = encoded(["1", "0", "1.0", "0.", "+1"])
    assert names == ["0", "1"]
    assert indices.tolist() == [1, 0, 1, 0, 1]


def test_codes_with_leading_zeros_stay_apart():
    assert encoded(["01", "1", "002"])[0] == ["01", "1", "002"]


@pytest.mark.parametrize(
    ("written", "name"),
    [("1.50", "1.5"), ("-0", "0"), ("-0.0", "0"), ("1e3", "1000"), ("007", "007"), ("-3.0", "-3"), (".5", "0.5")],
)
def test_a_number_has_one_name(written, name):
    assert plain_number(written) == name


def test_strings_are_in_order_of_first_appearance():
    assert encoded(["b", "a", "b", "10"])[0] == ["b", "a", "10"]


def test_one_word_among_numbers_makes_all_of_them_strings():
    assert encoded(["10", "2", "1.0", "unknown", "1"])[0] == ["10", "2", "1.0", "unknown", "1"]


def test_the_recipe_gives_the_order_and_what_it_does_not_list_is_unknown():
    names, indices, source = encoded(["a", "b", "c", "bb"], labels=["b", "a"])
    assert names == ["b", "a"]
    assert indices.tolist() == [1, 0]
    assert source.lines == [2, 3]
    assert [(bad.line, bad.reason) for bad in source.quarantine] == [
        (4, "unknown label 'c'"),
        (5, "unknown label 'bb', the nearest is 'b'"),
    ]


def test_listed_numbers_are_met_however_they_are_written():
    names, indices, source = encoded(["1.0", "0", "2"], labels=[1, 0])
    assert names == ["1", "0"]
    assert indices.tolist() == [0, 1]
    assert len(source.quarantine) == 1


def test_declared_names_give_the_order_of_those_that_occur():
    assert encoded(["pos", "neg"], class_names=["unused", "neg", "pos"])[0] == ["neg", "pos"]


def test_several_labels_make_a_matrix():
    names, flags, _ = encoded([("a", "b"), ("b",), ()], label_separator="|")
    assert names == ["a", "b"]
    assert flags.dtype == np.uint8
    assert flags.tolist() == [[1, 1], [0, 1], [0, 0]]


def test_listed_labels_must_be_the_columns():
    with pytest.raises(DataError, match="make them the same"):
        encoded([("a",)], label=["a", "b"], labels=["a", "c"])
    assert encoded([("a",)], label=["a", "b"], labels=["b", "a"])[0] == ["b", "a"]
