"""kill -9 at any moment loses nothing: run again, a run ends byte for byte as if nothing had happened."""

from __future__ import annotations

import random
import time
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import pytest

from tests.faults.bench import Attempt, Bench, Failures
from tests.faults.shim import Action, Event, Fault, Kind

PARTS = 12
MOMENTS = 200
SEED = 20


def kill_at(bench: Bench, faults: Iterable[Fault]) -> Failures:
    """Kills a new run by each fault, and runs it again."""
    failures = Failures()
    for fault in faults:
        with bench.folder() as folder, failures.trying(fault):
            ended = bench.attempt(folder, fault)
            assert ended.code == -9, f"ended with {ended.code} and was not killed: {ended.stderr}"
            bench.check_end(folder, "a kill")
    return failures


def kill_at_moments(bench: Bench, numbers: Iterable[int]) -> Failures:
    """Kills a new run at a random moment, and in two of three cases what goes on with it too."""
    failures = Failures()
    for number in numbers:
        rng = random.Random(SEED * 1000 + number)
        with bench.folder() as folder, failures.trying(f"random moments, number {number}"):
            events = []
            for _ in range(1 + number % 3):
                delay = rng.uniform(0.0, 1.05 * bench.seconds)
                ended = bench.attempt(folder, meanwhile=partial(_kill_after, delay))
                events.append(len(ended.events))
            bench.check_end(folder, f"kills after {events} events")
    return failures


def _kill_after(seconds: float, attempt: Attempt) -> None:
    time.sleep(seconds)
    attempt.signal(9)


def test_killed_at_some_borders_a_run_ends_the_same(bench: Bench) -> None:
    numbers = range(7, bench.events, bench.events // 4)
    kill_at(bench, (Fault(Action.KILL_BEFORE, number) for number in numbers)).check()


def test_killed_at_some_moments_a_run_ends_the_same(bench: Bench) -> None:
    kill_at_moments(bench, range(2, 4)).check()


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("action", [Action.KILL_BEFORE, Action.KILL_INSIDE, Action.KILL_AFTER])
def test_killed_at_every_border_a_run_ends_the_same(bench: Bench, action: Action, part: int) -> None:
    """Before each call; in the middle of each write; after each sync and rename, where something was just made safe."""
    kinds = {Action.KILL_INSIDE: Kind.WRITE, Action.KILL_AFTER: Kind.SYNC | Kind.RENAME}.get(action, Kind(0x1FF))
    numbers = [event.number for event in bench.reference[1] if event.kind & kinds and event.bytes != 1]
    kill_at(bench, (Fault(action, number) for number in numbers[part::PARTS])).check()


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("part", range(PARTS))
def test_killed_at_random_moments_a_run_ends_the_same(bench: Bench, part: int) -> None:
    kill_at_moments(bench, range(part, MOMENTS, PARTS)).check()


def lose_what_was_not_synced(folder: Path, events: list[Event]) -> None:
    """Cuts off each file what was written to it after its last sync, as a machine that loses power may."""
    safe: dict[str, int] = {}
    size: dict[str, int] = {}
    for event in events:
        match event.kind:
            case Kind.OPEN:
                size[event.path] = safe[event.path] = 0
            case Kind.WRITE:
                size[event.path] = size.get(event.path, 0) + event.bytes
            case Kind.SYNC:
                safe[event.path] = size.get(event.path, 0)
            case Kind.RENAME if event.target is not None:
                for sizes in (safe, size):
                    below = [path for path in sizes if path == event.path or path.startswith(f"{event.path}/")]
                    for path in below:
                        sizes[event.target + path.removeprefix(event.path)] = sizes.pop(path)
    for name in size:
        place = folder / name
        # SQLite writes its files at offsets, and in its log it finds by checksums what is whole.
        if place.is_file() and size[name] > safe.get(name, 0) and not name.startswith("ledger"):
            with place.open("r+b") as file:
                file.truncate(safe.get(name, 0))


def cut_power_at(bench: Bench, numbers: Iterable[int]) -> Failures:
    """Kills a new run, takes away what was not synced, and runs it again."""
    failures = Failures()
    for number in numbers:
        with bench.folder() as folder, failures.trying(f"power cut before event {number}"):
            ended = bench.attempt(folder, Fault(Action.KILL_BEFORE, number))
            lose_what_was_not_synced(folder, ended.events[:-1])
            bench.check_end(folder, "a power cut")
    return failures


def test_what_was_not_synced_when_power_failed_is_made_again(bench: Bench) -> None:
    renames = [event.number + 1 for event in bench.reference[1] if event.kind is Kind.RENAME]
    cut_power_at(bench, renames[5 :: len(renames) // 2]).check()


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("part", range(PARTS))
def test_power_cut_after_every_rename_loses_nothing(bench: Bench, part: int) -> None:
    renames = [event.number + 1 for event in bench.reference[1] if event.kind is Kind.RENAME]
    cut_power_at(bench, renames[part::PARTS]).check()
