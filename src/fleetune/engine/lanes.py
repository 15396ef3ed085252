"""Threads that each work on a part of a step by themselves, so that none waits for another inside an operation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cache
from typing import TypeVar

import torch

from fleetune.runtime import device

Item = TypeVar("Item")
Result = TypeVar("Result")

MOST_LANES = 8
"""More would wait for Python's interpreter lock; further cores join the lanes' matrix products."""


class Lanes:
    """`count` threads, each with `threads` cores for its operations.

    Frozen weights are shared. A core that another program takes slows its own lane, and not, as threads that share
    every operation do, all of them many times over.
    """

    def __init__(self, count: int, threads: int) -> None:
        self.count = count
        self._pool = ThreadPoolExecutor(count, "lane", torch.set_num_threads, (threads,)) if count > 1 else None

    def map(self, function: Callable[[Item], Result], items: Sequence[Item], side_by_side: bool = True) -> list[Result]:
        """Returns `function` of each item, in order; each lane takes the next item when it is free.

        Args:
            function: What is done.
            items: To what.
            side_by_side: Whether lanes can work at the same time; else the caller does all, with every core.

        Raises:
            Exception: The first that an item raised, once every item has ended.
        """
        if self._pool is None or len(items) == 1 or not side_by_side:
            return [function(item) for item in items]
        futures = [self._pool.submit(function, item) for item in items]
        wait(futures)
        results: list[Result] = []
        while futures:
            # Taken out first: an error holds this frame, and if the frame held the error, both would outlive the fleet.
            results.append(futures.pop(0).result())
        return results


def lanes() -> Lanes:
    """Returns the lanes of this process: on a GPU the one thread that feeds it, else one for each core up to 8."""
    if device().type != "cpu":
        return _lanes(1)
    return _lanes(torch.get_num_threads())


@cache
def _lanes(cores: int) -> Lanes:
    count = min(cores, MOST_LANES)
    return Lanes(count, max(1, cores // count))
