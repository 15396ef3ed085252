"""Trials divided between one-thread processes that run at once: contender D."""

from __future__ import annotations

import multiprocessing
import os
import queue
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch

from benchmarks.inputs import Inputs
from benchmarks.trainer import Habits, Trained, TrainerSide
from fleetune.engine.trial import TrialSpec
from fleetune.memory import peak_bytes

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
LOADING_SECONDS = 600.0


@dataclass(frozen=True)
class Part:
    """What one process did: its trials in order, and its peak memory."""

    trained: list[Trained]
    peak_bytes: int


def train_in_processes(inputs: Inputs, habits: Habits, processes: int) -> tuple[float, list[Part]]:
    """Returns the seconds from the moment when every process is ready to the last one's end, and what each did.

    Raises:
        RuntimeError: If a process fails.
    """
    parts = divide(inputs.trials, processes)
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(len(parts) + 1), context.Queue()
    children = [
        context.Process(target=_work, args=(replace(inputs, trials=part), habits, barrier, results), daemon=True)
        for part in parts
    ]
    with _one_thread_each():
        for child in children:
            child.start()
    try:
        _wait_for(barrier, results)
        started = time.perf_counter()
        done = [_result(results, children) for _ in children]
        seconds = time.perf_counter() - started
    finally:
        for child in children:
            child.join(timeout=30)
            child.terminate()
    return seconds, done


def divide(trials: tuple[TrialSpec, ...], parts: int) -> list[tuple[TrialSpec, ...]]:
    """Returns the trials dealt out in turn, so that costly methods do not all fall to one process."""
    dealt = [trials[start::parts] for start in range(parts)]
    return [part for part in dealt if part]


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Makes processes that start meanwhile use one thread; libraries read this when they are loaded."""
    before = {name: os.environ.get(name) for name in THREAD_VARIABLES}
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _wait_for(barrier: Any, results: Any) -> None:
    try:
        barrier.wait(LOADING_SECONDS)
    except Exception as error:
        reason = "it took too long" if results.empty() else results.get()
        raise RuntimeError(f"a process could not get ready: {reason}") from error


def _result(results: Any, children: list[Any]) -> Part:
    while True:
        try:
            result = results.get(timeout=1.0)
        except queue.Empty:
            dead = [child.exitcode for child in children if child.exitcode]
            if dead:
                raise RuntimeError(f"a process ended with exit status {dead[0]}") from None
            continue
        if isinstance(result, str):
            raise RuntimeError(f"a process failed:\n{result}")
        return result


def _work(inputs: Inputs, habits: Habits, barrier: Any, results: Any) -> None:
    """Trains one process's trials, and puts a `Part` or a traceback into `results`."""
    torch.set_num_threads(1)
    try:
        side = TrainerSide(inputs, habits)
        barrier.wait(LOADING_SECONDS)
        trained = [side.train(spec) for spec in inputs.trials]
        results.put(Part(trained, peak_bytes()))
    except Exception:  # noqa: BLE001  whatever went wrong, the parent waits for it
        results.put(traceback.format_exc())
        barrier.abort()
