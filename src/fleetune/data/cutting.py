"""What becomes of texts that are longer than `max_tokens`: cut, cut in the middle, or read in windows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from fleetune.errors import DataError, RecipeError

Positions = NDArray[np.int64]
WindowPool = Literal["mean", "max"]


class Cutting(BaseModel):
    """How texts that are longer than `max_tokens` are made to fit.

    Pairs are never read in windows: it would be open which of the two texts is to stand in every window.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    long_texts: Literal["head", "head_tail", "windows"] = "head"
    """Of a text longer than `max_tokens`: `head` keeps its beginning, `head_tail` its beginning and end (of a pair the
    longer text is cut; both where both are long), `windows` reads it in overlapping windows and pools their logits."""
    head_share: float = Field(default=0.25, ge=0.0, lt=1.0)
    """`head_tail`: share of the room beside special tokens that the beginning has. 0.25 is 128 of 510 tokens, as in Sun
    et al., 2019 (arXiv 1905.05583); 0 keeps the end alone."""
    window_stride: int | None = Field(default=None, ge=1)
    """`windows`: tokens by which a window starts later than the one before; half of `max_tokens` where absent."""
    max_windows: int = Field(default=8, ge=1)
    """`windows`: a text that needs more windows is cut after this many."""
    window_pool: WindowPool = "mean"
    """`windows`: a text's logits are the `mean` of its windows' logits, or their `max` label by label."""

    @model_validator(mode="after")
    def _settings_have_an_effect(self) -> Cutting:
        for name, wanted in (
            ("head_share", "head_tail"),
            ("window_stride", "windows"),
            ("max_windows", "windows"),
            ("window_pool", "windows"),
        ):
            if self.long_texts != wanted and getattr(self, name) != Cutting.model_fields[name].default:
                raise ValueError(f'{name} goes with long_texts = "{wanted}", not with "{self.long_texts}"')
        return self

    @property
    def identity(self) -> list[Any]:
        """The settings of long texts that decide a result; none where texts are cut behind their beginning."""
        match self.long_texts:
            case "head":
                return []
            case "head_tail":
                return ["head_tail", self.head_share]
            case _:
                return ["windows", self.window_stride, self.max_windows, self.window_pool]

    def most_tokens(self, max_tokens: int) -> int:
        """Returns how many tokens a text may have in all its windows."""
        return max_tokens * (self.max_windows if self.long_texts == "windows" else 1)

    def check(self, frame: Sequence[int], max_tokens: int) -> None:
        """Does nothing if texts can be cut like this.

        Args:
            frame: Numbers of special tokens before, between and after the one or two texts.
            max_tokens: Length of a sequence, special tokens included.

        Raises:
            DataError: If `max_tokens` leaves no room for text.
            RecipeError: If windows would leave tokens out, or texts are pairs and would be read in windows.
        """
        room = max_tokens - sum(frame)
        if room < len(frame) - 1:
            raise DataError(
                f"max_tokens = {max_tokens} leaves no room for text beside {sum(frame)} special tokens; give more."
            )
        if self.long_texts != "windows":
            return
        if len(frame) == 3:
            raise RecipeError(
                'long_texts = "windows" takes single texts, and these are pairs.\n'
                'Type: long_texts = "head_tail", which keeps both ends of the longer text'
            )
        if self.window_stride is not None and self.window_stride > room:
            raise RecipeError(
                f"window_stride = {self.window_stride} leaves tokens out: a window has {room} beside special tokens.\n"
                f"Give at most {room}"
            )

    def sequences(self, lengths: Sequence[int], frame: Sequence[int], max_tokens: int) -> list[Positions]:
        """Returns which tokens of a text, or a pair, each sequence has that is made of it.

        Args:
            lengths: Tokens of the one or two texts, special tokens left out; together they are too long.
            frame: As for `check`.
            max_tokens: Length of a sequence, special tokens included.
        """
        room = max_tokens - sum(frame)
        if self.long_texts == "windows":
            return [_framed([window], lengths, frame) for window in self._windows(lengths[0], room, max_tokens)]
        rooms = (room,) if len(lengths) == 1 else _rooms_of_pair(lengths, room)
        return [_framed([self._ends(*text) for text in zip(lengths, rooms, strict=True)], lengths, frame)]

    def _ends(self, length: int, room: int) -> Positions:
        """Returns the first and the last tokens of a text that has `room`; the head's share is rounded half up."""
        if length <= room:
            return np.arange(length)
        head = int(self.head_share * room + 0.5)
        return np.concatenate([np.arange(head), np.arange(length - (room - head), length)])

    def _windows(self, length: int, room: int, max_tokens: int) -> list[Positions]:
        """Returns the windows of a text that is longer than `room`.

        The last one ends with the text, so that no window is short and yet counts as much as the others.
        """
        stride = self.window_stride or min(max_tokens // 2, room)
        needed = 1 + -(-(length - room) // stride)
        starts = [min(number * stride, length - room) for number in range(min(needed, self.max_windows))]
        return [np.arange(start, start + room) for start in starts]


def _rooms_of_pair(lengths: Sequence[int], room: int) -> tuple[int, int]:
    """Returns how many tokens each text of a pair may keep: the shorter one all, up to half of the room."""
    if lengths[0] <= lengths[1]:
        first = min(lengths[0], room // 2)
        return first, room - first
    second = min(lengths[1], room // 2)
    return room - second, second


def _framed(texts: Sequence[Positions], lengths: Sequence[int], frame: Sequence[int]) -> Positions:
    """Returns the positions, in the whole sequence, of every special token and of the tokens kept of each text."""
    parts, start = [], 0
    for special, kept, length in zip(frame, texts, lengths, strict=False):
        parts += [np.arange(start, start + special), start + special + kept]
        start += special + length
    return np.concatenate([*parts, np.arange(start, start + frame[-1])]).astype(np.int64)
