"""kill -9 at any moment loses nothing: run again, a run ends byte for byte as if nothing had happened."""

from __future__ import annotations

import random
import time
from collections.abc import Iterable
from functools import partial

import pytest

from tests.faults.bench import Attempt, Bench, Failures
from tests.faults.ending import steps_made
from tests.faults.power import Names, lose_what_was_not_synced
from tests.faults.shim import Action, Fault, Kind

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


def cut_power_before(bench: Bench, numbers: Iterable[int], names: Names) -> Failures:
    """Kills a new run before an event, or lets it end; takes away what may not be on disk then, and runs it again."""
    failures = Failures()
    for number in numbers:
        with bench.folder() as folder, failures.trying(f"power cut before event {number}, {names.value}"):
            ended = bench.attempt(folder, Fault(Action.KILL_BEFORE, number))
            assert ended.code == (0 if number > bench.events else -9), f"ended with {ended.code}: {ended.stderr}"
            made = steps_made(folder)
            done = [event for event in ended.events if event.number < number]
            lose_what_was_not_synced(folder, done, ended.removed, names)
            lost = made.keys() - steps_made(folder).keys()
            assert not lost, f"after a power cut: {len(lost)} steps that the ledger had are gone"
            bench.check_end(folder, "a power cut")
    return failures


def power_cuts(bench: Bench) -> list[int]:
    """Returns the events before which there is most to lose: a name was just changed, a commit made, or the run ended.

    What a commit tells of must be on disk then, and what it tells of no more is removed after it.
    """
    cuts = []
    for event in bench.reference[1]:
        is_commit = event.kind is Kind.SYNC and event.path.startswith("ledger")
        if is_commit or event.kind & (Kind.RENAME | Kind.UNLINK | Kind.MKDIR):
            cuts.append(event.number + 1)
    return [*cuts, bench.events + 1]


@pytest.mark.parametrize("names", Names)
def test_what_was_not_synced_when_power_failed_is_made_again(bench: Bench, names: Names) -> None:
    cuts = power_cuts(bench)
    cut_power_before(bench, cuts[-1 :: -len(cuts) // 3], names).check()


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("names", Names)
def test_power_cut_where_there_is_most_to_lose_loses_nothing(bench: Bench, names: Names, part: int) -> None:
    cut_power_before(bench, power_cuts(bench)[part::PARTS], names).check()
