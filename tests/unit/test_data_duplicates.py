"""Texts that are the same, or nearly."""

from __future__ import annotations

import numpy as np
import pytest

from fleetune.data import duplicates
from fleetune.data.duplicates import find_near_duplicates, group_duplicates, normalised, normalised_texts


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("A  text\n", " a text", True),
        ("see http://a.b/c now", "see https://x.y now", True),
        ("see www.a.b now", "see http://x.y now", True),
        ("STRASSE\u00a0x", "strasse x", True),
        ("a text", "a text.", False),
        ("ab c", "a bc", False),
        ("http", "https", False),
    ],
)
def test_case_white_space_and_links_make_no_difference(one, other, same):
    assert (normalised(one) == normalised(other)) == same


def test_a_pair_is_the_same_only_as_a_whole():
    keys = normalised_texts(["a", "a b", "A", "x"], ["b c", "c", "b  c", "y"])
    assert group_duplicates(keys).tolist() == [0, 1, 0, 2]


def words(random, number):
    return " ".join("".join(random.choice(list("abcdefghijklmnop"), 5)) for _ in range(number))


def jaccard(one, other):
    a, b = ({text[i : i + 5] for i in range(len(text) - 4)} for text in (one, other))
    return len(a & b) / len(a | b)


def test_near_duplicates_are_those_that_brute_force_finds():
    random = np.random.default_rng(3)
    training = [words(random, 14) for _ in range(200)]
    searched = []
    for number in range(200):
        copied = training[number].split()
        for _ in range(number % 5):
            copied[random.integers(len(copied))] = words(random, 1)
        searched.append(" ".join(copied))
    near = find_near_duplicates(training, searched)
    expected = {row for row, text in enumerate(searched) if max(jaccard(text, other) for other in training) >= 0.8}
    assert 40 < len(expected) < 150
    assert set(near.found) <= expected
    assert len(near.found) >= 0.97 * len(expected)
    assert all(
        jaccard(searched[row], training[other]) >= 0.8 for row, other in zip(near.found, near.resembles, strict=True)
    )
    assert near.found == sorted(near.found)


@pytest.mark.parametrize("texts", [[], [""], ["a"], ["abc", "é漢😀", "abcdef"]])
def test_short_texts_resemble_only_themselves(texts):
    near = find_near_duplicates(texts, texts)
    assert near.found == list(range(len(texts)))
    assert near.resembles == near.found
    assert find_near_duplicates(texts, ["zzz"]).found == []


def test_too_many_characters_are_thinned_out_and_said_so(monkeypatch):
    monkeypatch.setattr(duplicates, "MAX_CHARACTERS", 300)
    random = np.random.default_rng(0)
    training = [words(random, 3) for _ in range(100)]
    near = find_near_duplicates(training, training[:50])
    assert near.compared < 15
    assert near.searched < 8
