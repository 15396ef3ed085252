"""Texts that are the same, or nearly: groups of exact duplicates, and near ones by MinHash."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

LINK = re.compile(r"(?:https?://|www\.)\S+")
BETWEEN_PAIR = "\x00"

SHINGLE_CHARACTERS = 5
BANDS, ROWS_IN_BAND = 12, 5
NEAR_JACCARD = 0.8
MAX_CHARACTERS_OF_A_TEXT = 2_000
MAX_CHARACTERS = 24_000_000
MAX_CANDIDATES = 8
CHUNK_CHARACTERS = 1 << 18

Indices = NDArray[np.int64]


def normalised(text: str) -> str:
    """Returns what duplicates have in common: the text without case, needless white space and link targets."""
    lowered = text.lower()
    if "http" in lowered or "www." in lowered:
        lowered = LINK.sub("http", lowered)
    return " ".join(lowered.split())


def normalised_texts(texts: Sequence[str], pairs: Sequence[str] | None) -> list[str]:
    """Returns what each text, or pair of texts, is known by."""
    if pairs is None:
        return [normalised(text) for text in texts]
    return [normalised(a) + BETWEEN_PAIR + normalised(b) for a, b in zip(texts, pairs, strict=True)]


def group_duplicates(normal: Sequence[str]) -> Indices:
    """Returns the number of each text's group, counted in order of first appearance."""
    numbers: dict[str, int] = {}
    return np.array([numbers.setdefault(text, len(numbers)) for text in normal], dtype=np.int64)


@dataclass(frozen=True)
class NearDuplicates:
    """Texts that resemble a training text.

    Attributes:
        found: Positions in the searched texts.
        resembles: The training text's position for each of them.
        compared: Number of training texts compared; all of them unless there were too many characters.
        searched: Number of searched texts, bounded likewise.
    """

    found: list[int]
    resembles: list[int]
    compared: int
    searched: int


def find_near_duplicates(training: Sequence[str], searched: Sequence[str], seed: int = 0) -> NearDuplicates:
    """Returns which of `searched` share four fifths of their character 5-grams with a text of `training`.

    Candidates are those that agree in one of twelve bands of five MinHash values (Broder, 1997); each is then
    compared exactly. A text enters with its first 2,000 characters, and at most 24 million characters enter at all:
    beyond, a random choice of texts.
    """
    random = np.random.default_rng(seed)
    those = _within(searched, MAX_CHARACTERS // 3, random)
    these = _within(training, MAX_CHARACTERS - MAX_CHARACTERS // 3, random)
    if not len(these) or not len(those):
        return NearDuplicates([], [], len(these), len(those))
    ours = [searched[position][:MAX_CHARACTERS_OF_A_TEXT] for position in those]
    theirs = [training[position][:MAX_CHARACTERS_OF_A_TEXT] for position in these]
    signatures, training_signatures = _signatures(ours), _signatures(theirs)
    found, resembles = [], []
    for text, candidates in _candidates(signatures, training_signatures).items():
        shingles = _shingles(ours[text])
        for candidate in candidates:
            others = _shingles(theirs[candidate])
            if len(shingles & others) >= NEAR_JACCARD * len(shingles | others):
                found.append(int(those[text]))
                resembles.append(int(these[candidate]))
                break
    order = np.argsort(np.array(found, dtype=np.int64), kind="stable")
    return NearDuplicates([found[i] for i in order], [resembles[i] for i in order], len(these), len(those))


def _within(texts: Sequence[str], characters: int, random: np.random.Generator) -> Indices:
    """Returns sorted positions of as many texts as the number of characters allows; all where they fit."""
    lengths = np.minimum(np.array([len(text) for text in texts], dtype=np.int64), MAX_CHARACTERS_OF_A_TEXT)
    if int(lengths.sum()) <= characters:
        return np.arange(len(texts), dtype=np.int64)
    order = random.permutation(len(texts))
    return np.sort(order[np.cumsum(lengths[order]) <= characters]).astype(np.int64)


def _shingles(text: str) -> set[str]:
    return {text[start : start + SHINGLE_CHARACTERS] for start in range(max(1, len(text) - SHINGLE_CHARACTERS + 1))}


def _signatures(texts: Sequence[str]) -> NDArray[np.uint32]:
    """Returns MinHash values `(texts, bands * rows)`."""
    random = np.random.default_rng(0)
    number = BANDS * ROWS_IN_BAND
    factors = random.integers(1, 1 << 63, number, dtype=np.uint64) | np.uint64(1)
    terms = random.integers(0, 1 << 63, number, dtype=np.uint64)
    result = np.empty((len(texts), number), dtype=np.uint32)
    start = 0
    while start < len(texts):
        stop, characters = start, 0
        while stop < len(texts) and characters < CHUNK_CHARACTERS:
            characters += len(texts[stop]) + SHINGLE_CHARACTERS
            stop += 1
        hashes, starts = _shingle_hashes(texts[start:stop])
        for column in range(number):
            mixed = ((hashes * factors[column] + terms[column]) >> np.uint64(32)).astype(np.uint32)
            result[start:stop, column] = np.minimum.reduceat(mixed, starts)
        start = stop
    return result


def _shingle_hashes(texts: Sequence[str]) -> tuple[NDArray[np.uint64], Indices]:
    """Returns a hash of each character 5-gram of the texts laid end to end, and where each text begins."""
    padding = "\0" * (SHINGLE_CHARACTERS - 1)
    width = SHINGLE_CHARACTERS
    # A text shorter than a shingle is padded to one; in a longer one no shingle reaches over its end.
    joined = "".join(text.ljust(width, "\0") + padding for text in texts)
    codes = np.frombuffer(joined.encode("utf-32-le", "surrogatepass"), dtype=np.uint32).astype(np.uint64)
    lengths = np.array([max(len(text), width) for text in texts], dtype=np.int64)
    hashes = np.zeros(len(codes) - width + 1, dtype=np.uint64)
    for offset in range(width):
        hashes *= np.uint64(0x100000001B3)
        hashes += codes[offset : offset + len(hashes)]
    hashes ^= hashes >> np.uint64(30)
    hashes *= np.uint64(0xBF58476D1CE4E5B9)
    hashes ^= hashes >> np.uint64(27)
    begins = np.cumsum(lengths + width - 1) - (lengths + width - 1)
    kept = lengths - width + 1
    within = np.arange(int(kept.sum())) - np.repeat(np.cumsum(kept) - kept, kept)
    return hashes[np.repeat(begins, kept) + within], (np.cumsum(kept) - kept).astype(np.int64)


def _candidates(ours: NDArray[np.uint32], theirs: NDArray[np.uint32]) -> dict[int, list[int]]:
    """Returns for each of our rows the rows of `theirs` that agree with it in a band."""
    pairs: dict[int, dict[int, None]] = {}
    for band in range(BANDS):
        columns = slice(band * ROWS_IN_BAND, (band + 1) * ROWS_IN_BAND)
        own, other = _band_hash(ours[:, columns]), _band_hash(theirs[:, columns])
        order = np.argsort(other, kind="stable")
        ordered = other[order]
        low = np.searchsorted(ordered, own, side="left")
        high = np.minimum(np.searchsorted(ordered, own, side="right"), low + MAX_CANDIDATES)
        for row in np.flatnonzero(high > low).tolist():
            pairs.setdefault(row, {}).update(dict.fromkeys(order[low[row] : high[row]].tolist()))
    return {row: list(candidates) for row, candidates in pairs.items()}


def _band_hash(values: NDArray[np.uint32]) -> NDArray[np.uint64]:
    result = np.zeros(len(values), dtype=np.uint64)
    for column in range(values.shape[1]):
        result = (result ^ values[:, column]) * np.uint64(0x9E3779B97F4A7C15)
        result ^= result >> np.uint64(29)
    return result
