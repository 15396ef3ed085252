"""Texts as the sequences of tokens that a backbone reads, by a Hugging Face tokenizer's own call."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fleetune.data.cutting import Cutting, Positions
from fleetune.errors import DataError, is_panic


@dataclass(frozen=True)
class Sequences:
    """The sequences that some texts are made into.

    Attributes:
        ids: Token ids of each sequence.
        types: Segments of each sequence, None where the tokenizer gives none.
        full_lengths: `(texts,)` lengths before cutting.
        counts: `(texts,)` sequences of each text.
        cut: `(texts,)` whether its sequences leave a part of it out.
    """

    ids: list[list[int]]
    types: list[list[int]] | None
    full_lengths: NDArray[np.int64]
    counts: NDArray[np.int64]
    cut: NDArray[np.bool_]


NO_SEQUENCES = Sequences([], None, np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.bool_))


def make_sequences(
    tokenizer: Any,
    texts: list[str],
    pairs: list[str] | None,
    max_tokens: int,
    cutting: Cutting,
    frame: tuple[int, ...] | None,
) -> Sequences:
    """Returns the sequences of a batch of texts; without `frame` the tokenizer itself cuts them."""
    ids, types = _call(tokenizer, texts, pairs, None)
    full = lengths_of(ids)
    long = np.flatnonzero(full > max_tokens).tolist()
    counts, cut = np.ones(len(texts), dtype=np.int64), full > max_tokens
    if frame is None:
        _cut(tokenizer, texts, pairs, max_tokens, ids, types, long)
        return Sequences(ids, types, full, counts, cut)
    inner = _inner_lengths(tokenizer, texts, pairs, full, frame, long)
    kept = {row: cutting.sequences(inner[row], frame, max_tokens) for row in long}
    for row, own in kept.items():
        counts[row], cut[row] = len(own), len(np.unique(np.concatenate(own))) < full[row]
    return Sequences(_divide(ids, kept), None if types is None else _divide(types, kept), full, counts, cut)


def find_frame(tokenizer: Any, pairs: bool) -> tuple[int, ...]:
    """Returns how many special tokens stand before, between and after a text, or the texts of a pair.

    Raises:
        DataError: If special tokens stand anywhere else.
    """
    word = "a"
    bare = _call(tokenizer, [word], None, None, special=False)[0][0]
    whole = _call(tokenizer, [word], [word] if pairs else None, None)[0][0]
    frame, start = [], 0
    for _ in range(2 if pairs else 1):
        places = range(start, len(whole) - len(bare) + 1)
        place = next((place for place in places if bare and whole[place : place + len(bare)] == bare), None)
        if place is None:
            raise DataError('this tokenizer puts special tokens into texts; long_texts = "head" is all it can do.')
        frame.append(place - start)
        start = place + len(bare)
    return *frame, len(whole) - start


def _call(
    tokenizer: Any, texts: list[str], pairs: list[str] | None, max_tokens: int | None, special: bool = True
) -> tuple[list[list[int]], list[list[int]] | None]:
    """Returns token ids and segments of a batch of texts, cut to `max_tokens` if that is a number."""
    truncation = (
        {"truncation": False} if max_tokens is None else {"truncation": "longest_first", "max_length": max_tokens}
    )
    try:
        encoded = tokenizer(
            texts,
            pairs,
            padding=False,
            return_attention_mask=False,
            verbose=False,
            add_special_tokens=special,
            **truncation,
        )
    except MemoryError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and not is_panic(error):
            raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise DataError(
            f"the tokenizer fails on these texts: {reason}.\nIts files are damaged; take the model or bundle anew"
        ) from error
    types = encoded.get("token_type_ids")
    return list(encoded["input_ids"]), None if types is None else list(types)


def _cut(
    tokenizer: Any,
    texts: list[str],
    pairs: list[str] | None,
    max_tokens: int,
    ids: list[list[int]],
    types: list[list[int]] | None,
    rows: list[int],
) -> None:
    """Replaces the token ids and segments of `rows` by cut ones."""
    if not rows:
        return
    try:
        cut = _call(tokenizer, [texts[row] for row in rows], pairs and [pairs[row] for row in rows], max_tokens)
    except DataError as error:
        raise DataError(
            f"max_tokens = {max_tokens} leaves no room for text beside special tokens: {error.__cause__}"
        ) from None
    for place, row in enumerate(rows):
        ids[row] = cut[0][place]
        if types is not None and cut[1] is not None:
            types[row] = cut[1][place]


def _inner_lengths(
    tokenizer: Any,
    texts: list[str],
    pairs: list[str] | None,
    full: NDArray[np.int64],
    frame: tuple[int, ...],
    rows: list[int],
) -> dict[int, tuple[int, ...]]:
    """Returns the tokens of each text, or of both texts of each pair, in `rows`, special tokens left out."""
    inner = {row: int(full[row]) - sum(frame) for row in rows}
    if pairs is None or not rows:
        return {row: (length,) for row, length in inner.items()}
    firsts = _call(tokenizer, [texts[row] for row in rows], None, None, special=False)[0]
    return {row: (len(first), inner[row] - len(first)) for row, first in zip(rows, firsts, strict=True)}


def _divide(rows: list[list[int]], kept: dict[int, list[Positions]]) -> list[list[int]]:
    """Returns the rows, each of those in `kept` replaced by the sequences that it is divided into."""
    divided: list[list[int]] = []
    for number, row in enumerate(rows):
        divided += [np.asarray(row)[own].tolist() for own in kept[number]] if number in kept else [row]
    return divided


def lengths_of(rows: list[list[int]]) -> NDArray[np.int64]:
    """Returns the number of tokens `(rows,)` in each row."""
    return np.array([len(row) for row in rows], dtype=np.int64)
