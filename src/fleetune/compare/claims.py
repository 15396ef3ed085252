"""Sentences that may be printed: each follows from a test or a count, and names the numbers it follows from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Claim:
    """One sentence with its evidence.

    Attributes:
        text: The sentence.
        evidence: Key of the section of the page that has its numbers, such as `tests`, `budget` or `configurations`.
        numbers: The numbers in it by name.
        data: Name of the data it is about.
    """

    text: str
    evidence: str
    numbers: dict[str, Any] = field(default_factory=dict)
    data: str = ""
