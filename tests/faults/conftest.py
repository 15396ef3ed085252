"""A small recipe, and the bench on which runs of it are killed, refused and damaged."""

from __future__ import annotations

import csv
import os
import random
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from tests.conftest import BAD, GOOD, PLAIN
from tests.faults.bench import Bench
from tests.faults.shim import compile_shim, why_not

MEMORY = Path("/dev/shm")
ROOM_BYTES = 256 << 20


@pytest.fixture(scope="session")
def work() -> Iterator[Path]:
    """Yields a folder for runs: in memory where there is room, since a disk takes its time for each sync."""
    in_memory = MEMORY.is_dir() and os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free > ROOM_BYTES
    folder = Path(tempfile.mkdtemp(prefix="fleetune-faults-", dir=MEMORY if in_memory else None)).resolve()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def library(work: Path) -> Path:
    """Returns the shim; skips where it cannot be made."""
    reason = why_not()
    if reason is not None:
        pytest.skip(reason)
    return compile_shim(work)


@pytest.fixture(scope="session")
def fault_recipe(work: Path, tiny_bert: Path) -> Path:
    """Returns a recipe of three trials in two fleets: accumulation, dropout, an early stop, saves within epochs."""
    return write_fault_recipe(work, tiny_bert)


@pytest.fixture(scope="session")
def bench(fault_recipe: Path, work: Path, library: Path) -> Iterator[Bench]:
    """Yields the bench for that recipe."""
    bench = Bench(fault_recipe, work, library)
    try:
        yield bench
    finally:
        bench.close()


def write_fault_recipe(folder: Path, model: Path, name: str = "faults.toml", **tables: Any) -> Path:
    """Returns the path of a recipe over a tiny model; keywords replace whole tables."""
    rng = random.Random(0)
    with (folder / "texts.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        for number in range(45):
            words = [*rng.choices(PLAIN, k=4), *rng.choices((BAD, GOOD)[number % 2], k=2), PLAIN[number % 15]]
            writer.writerow([" ".join([*words, PLAIN[number // 15]]), ("neg", "pos")[number % 2]])
    document: dict[str, Any] = {
        "data": {"path": "texts.csv", "leaks": "drop", "split": {"validation": 0.2, "test": 0.2}},
        "backbone": {"model": str(model), "name": "tiny"},
        "training": {
            "checkpoint_seconds": 0,
            "seeds": 1,
            "epochs": 1.5,
            "precision": "fp32",
            "learning_rate": 1e-2,
            "metric": "accuracy",
            "batch_size": 4,
            "gradient_accumulation_steps": 2,
            "evaluate_every": 2,
        },
        "method": [
            {"kind": "lora", "rank": 2, "dropout": 0.1, "early_stopping_patience": 1},
            {"kind": "adalora"},
            {"kind": "full", "max_steps": 2},
        ],
    }
    path = folder / name
    path.write_text(tomli_w.dumps(document | tables), encoding="utf-8")
    return path
