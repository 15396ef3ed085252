"""What happens around a run: clocks jump, folders move, a second process comes, somebody asks it to stop."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from tests.faults.bench import ONE_THREAD, Attempt, Bench, Failures
from tests.faults.ending import read_ending
from tests.faults.shim import Action, Fault

DAY_SECONDS = 86_400
STOP_SECONDS = 60.0
"""Far more than the 10 seconds in which it must stop: a machine may be busy."""
MOMENTS = 24


def wait_for_events(attempt: Attempt, events: int) -> None:
    """Waits until an attempt has done so much to its folder, or has ended."""
    log = Path(f"{attempt.output}.log")
    until = time.monotonic() + STOP_SECONDS
    while time.monotonic() < until and (not log.exists() or log.read_bytes().count(b"\n") < events):
        time.sleep(0.002)


@pytest.mark.parametrize(
    "seconds", [-DAY_SECONDS, *(pytest.param(days * DAY_SECONDS, marks=pytest.mark.slow) for days in (1, -40 * 365))]
)
def test_a_wall_clock_that_jumps_changes_nothing(bench: Bench, seconds: int) -> None:
    """Set back by hand or by a time server; ahead, as after a night in which the machine slept."""
    with bench.folder() as folder:
        killed = Fault(Action.KILL_BEFORE, 2 * bench.events // 3, clock_event=bench.events // 3, clock_seconds=seconds)
        assert bench.attempt(folder, killed).code == -signal.SIGKILL
        # The next attempt begins at the time that is right, before or after all that the ledger has.
        bench.check_end(folder, str(killed))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_wall_clock_that_jumps_anywhere_changes_nothing(bench: Bench) -> None:
    failures = Failures()
    for number in range(MOMENTS):
        rng = random.Random(number)
        jump = rng.choice([-1, 1]) * rng.randrange(1, 3 * DAY_SECONDS)
        fault = Fault(clock_event=rng.randrange(1, bench.events), clock_seconds=jump)
        with bench.folder() as folder, failures.trying(fault):
            ended = bench.attempt(folder, fault)
            assert ended.code == 0, ended.stderr
            assert not read_ending(folder).differences(bench.reference[0])
    failures.check()


def test_a_folder_that_was_moved_goes_on(bench: Bench) -> None:
    """Also by the recipe that is frozen in it, which is all that is left where it was copied to another place."""
    with bench.folder() as folder:
        for number in (1, 2):
            bench.attempt(folder, Fault(Action.KILL_BEFORE, bench.events // 3))
            moved = folder.with_name(f"{folder.name}-moved-{number}")
            folder.rename(moved)
            asked = [str(bench.recipe), "--out", str(moved)] if number == 1 else [str(moved / "recipe.toml")]
            ended = bench.attempt(moved, arguments=["run", *asked])
            assert ended.code == 0, ended.stderr
            # Files of the data name their source as it is found from the recipe.
            got = read_ending(moved) if number == 1 else replace(read_ending(moved), inputs=bench.reference[0].inputs)
            assert not got.differences(bench.reference[0])


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_folder_that_is_moved_away_ends_the_run_loudly(bench: Bench) -> None:
    with bench.folder() as folder:
        moved = folder.with_name(f"{folder.name}-away")

        def move(attempt: Attempt) -> None:
            wait_for_events(attempt, bench.events // 2)
            attempt.signal(signal.SIGSTOP)
            folder.rename(moved)
            attempt.signal(signal.SIGCONT)

        ended = bench.attempt(folder, meanwhile=move)
        assert ended.is_loud and folder.name in ended.error, (ended.code, ended.stderr)
        bench.check_end(moved, "its folder was moved away")


def test_of_two_processes_the_second_is_refused_and_takes_over_when_the_first_is_dead(bench: Bench) -> None:
    with bench.folder() as folder:

        def try_too(attempt: Attempt) -> None:
            wait_for_events(attempt, bench.events // 3)
            attempt.signal(signal.SIGSTOP)
            second = bench.attempt(folder)
            assert second.is_loud and "written by" in second.error and folder.name in second.error, second.stderr
            assert not second.events or {event.path for event in second.events} <= {".", "ledger.lock"}
            attempt.signal(signal.SIGKILL)

        assert bench.attempt(folder, meanwhile=try_too).code == -signal.SIGKILL
        bench.check_end(folder, "another process was killed")


@pytest.mark.parametrize("tries", [1, pytest.param(20, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])])
def test_processes_that_start_at_once_do_not_mix(bench: Bench, tries: int) -> None:
    """One of them trains; the others are refused, or begin after it has ended and find nothing to do."""
    failures = Failures()
    for number in range(tries):
        with bench.folder() as folder, failures.trying(f"race {number}"):
            attempts = [bench.start(folder) for _ in range(3)]
            ended = [bench.wait(attempt) for attempt in attempts]
            assert any(one.code == 0 for one in ended)
            assert all(one.code == 0 or one.is_loud for one in ended), [one.stderr for one in ended]
            bench.check_end(folder, "processes that started at once")
    failures.check()


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_run_that_is_asked_to_stop_saves_and_says_how_to_go_on(bench: Bench, number: signal.Signals) -> None:
    with bench.folder() as folder:

        def ask(attempt: Attempt) -> None:
            wait_for_events(attempt, bench.events // 2)
            attempt.signal(number)

        attempt = bench.start(folder)
        ask(attempt)
        ended = bench.wait(attempt, STOP_SECONDS)
        assert ended.code == 128 + number
        assert "To go on type: fleetune run " in ended.error and len(ended.error.splitlines()) <= 2
        bench.check_end(folder, number.name)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_run_that_is_asked_to_stop_at_any_moment_loses_nothing(bench: Bench, number: signal.Signals) -> None:
    failures = Failures()
    longest = 0.0
    for moment in range(MOMENTS):
        delay = random.Random(moment).uniform(0.0, bench.seconds)
        with bench.folder() as folder, failures.trying(f"{number.name} after {delay:.3f} s, moment {moment}"):
            attempt = bench.start(folder)
            time.sleep(delay)
            attempt.signal(number)
            started = time.monotonic()
            ended = bench.wait(attempt, STOP_SECONDS)
            longest = max(longest, time.monotonic() - started)
            # One that comes before the run's own handler, or after it, ends the process as signals do.
            assert ended.code in (0, 128 + number, -number), ended.stderr
            assert "Traceback" not in ended.stderr
            bench.check_end(folder, "a stop")
    print(f"{number.name}: stopped within {longest:.2f} s, {MOMENTS} times")
    failures.check()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_process_that_was_asleep_goes_on(bench: Bench) -> None:
    with bench.folder() as folder:

        def sleep(attempt: Attempt) -> None:
            wait_for_events(attempt, bench.events // 2)
            attempt.signal(signal.SIGSTOP)
            time.sleep(1.0)
            attempt.signal(signal.SIGCONT)

        slept = Fault(clock_event=bench.events // 2, clock_seconds=8 * 3600)
        ended = bench.attempt(folder, slept, meanwhile=sleep)
        assert ended.code == 0, ended.stderr
        assert not read_ending(folder).differences(bench.reference[0])


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_whole_commands_that_are_killed_end_as_attempts_of_the_bench_do(bench: Bench) -> None:
    """The processes above are forked from one that has run before; these begin as a user's do, page and all."""
    rng = random.Random(0)
    with bench.folder() as folder:
        command = [sys.executable, "-m", "fleetune.cli", "run", str(bench.recipe), "--out", str(folder)]
        environment = {**os.environ, **ONE_THREAD}
        for _ in range(6):
            process = subprocess.Popen(
                command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
            )
            until = time.monotonic() + STOP_SECONDS
            while time.monotonic() < until and process.poll() is None and not (folder / "ledger.sqlite").exists():
                time.sleep(0.01)
            time.sleep(rng.uniform(0.0, 2.0))
            process.kill()
            process.wait()
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert not read_ending(folder).differences(bench.reference[0])
        assert (folder / "report" / "index.html").exists()
