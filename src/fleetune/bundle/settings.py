"""Holds a method's settings in a bundle to sizes that tensors have, and to patterns that end soon."""

from __future__ import annotations

from typing import Any

from fleetune.methods.patterns import is_literal, is_tame

RANKS = ("rank", "r", "tokens", "bottleneck", "initial_rank", "target_rank", "vector_length", "num_vectors")
RANKS_BY_MODULE = "rank_pattern"
MAX_RANK = 16_384
MAX_NUMBER = 1 << 26
SEEDS = ("seed", "prng")
"""Parts of the names of numbers that may be of any size."""


def settings_fault(settings: dict[str, Any]) -> str | None:
    """Returns what is wrong with the settings of a bundle's method; None where nothing is."""
    waiting: list[tuple[str, str, Any]] = [("", key, value) for key, value in settings.items()]
    while waiting:
        parent, key, value = waiting.pop()
        if not is_literal(key):
            return f"{key[:80]!r} is a pattern; names of modules are taken there"
        if isinstance(value, dict):
            waiting += [(key, inner, one) for inner, one in value.items()]
        elif isinstance(value, list):
            waiting += [(parent, key, one) for one in value]
        elif isinstance(value, str) and not is_literal(value) and not is_tame(value):
            return f"{key} is a pattern that might take forever"
        elif isinstance(value, int | float) and abs(value) > (limit := _limit(parent, key)):
            return f"{key} = {value}, and at most {limit:,.0f} is taken"
    return None


def _limit(parent: str, key: str) -> float:
    if key in RANKS or parent == RANKS_BY_MODULE:
        return MAX_RANK
    return float("inf") if any(word in key for word in SEEDS) else MAX_NUMBER
