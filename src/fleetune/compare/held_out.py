"""What a comparison may know of texts beside their labels: the words, the length, the user's columns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class HeldOutTexts:
    """The texts of one split, in the order of the trials' predictions.

    Attributes:
        texts: The words; of a pair the two texts with " ⟷ " between them.
        places: Where each stands: `file:line`.
        tokens: Number of tokens before cutting `(texts,)`, or None where no tokenizer has read them.
        slices: The user's columns by name, one value a text.
    """

    texts: list[str]
    places: list[str]
    tokens: NDArray[np.int64] | None = None
    slices: Mapping[str, list[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class TestUse:
    """One look at scores on the test split.

    Attributes:
        time: When, ISO 8601 in UTC.
        command: What looked: `run`, `compare`, `report`, `export`, `python`.
        metric: Name of the metric.
        configurations: How many configurations were scored.
    """

    __test__ = False  # pytest takes it for a test otherwise

    time: str
    command: str
    metric: str
    configurations: int
