"""Memory of a run with many texts and many trials, against what `fleetune check` forecasts of it.

    python -m benchmarks.memory [--texts 1000000] [--trials 200] [--validation 2000] [--test 5000] [--steps 5]

`check` and `run` are commands in processes of their own. Texts are short, distinct and drawn from a fixed seed, and
the model is tiny, so that what is measured is what grows with texts and trials. The peak is resident memory, pages of
mapped files among it. `docs/reliability.md` has results.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w

from benchmarks.models import random_model

MIB = 1 << 20
SEEDS = 5
WORDS, SHORTEST, LONGEST = 5_000, 4, 10
LETTERS = "abcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True)
class Size:
    """What grows.

    Attributes:
        texts: In all.
        trials: Five seeds each of as many configurations.
        validation: Validation texts.
        test: Test texts.
        steps: Optimizer steps of each trial.
    """

    texts: int
    trials: int
    validation: int
    test: int
    steps: int


@dataclass(frozen=True)
class Measured:
    """A forecast and peaks of resident memory.

    Attributes:
        forecast: The largest of the fleets' forecasts.
        check: Peak of the process of `check`.
        run: Peak of the run, as `run --json` says it.
        process: Peak of the process of `run`, which compares and reports afterwards.
        done: Trials that were trained.
    """

    forecast: int
    check: int
    run: int
    process: int
    done: int


def main() -> int:
    """Measures and prints a line of a table; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("texts", 1_000_000), ("trials", 200), ("validation", 2_000), ("test", 5_000), ("steps", 5)):
        parser.add_argument(f"--{name}", type=int, default=value)
    size = Size(**vars(parser.parse_args()))
    print("| texts | trials | validation | test | forecast | run | run and report | check | run / forecast |")
    print("| --: | --: | --: | --: | --: | --: | --: | --: | --: |", flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        print(line(size, measured(size, Path(scratch))), flush=True)
    return 0


def measured(size: Size, scratch: Path) -> Measured:
    """Returns what was forecast of a run of this size, and what it took; its files go into `scratch`."""
    recipe = scratch / "recipe.toml"
    recipe.write_text(tomli_w.dumps(recipe_of(size, scratch)), encoding="utf-8")
    checked, of_check = _command("check", str(recipe))
    summary, of_run = _command("run", str(recipe), "--out", str(scratch / "run"))
    return Measured(
        forecast=max(fleet["forecast"]["peak_bytes"] for fleet in checked["fleets"]),
        check=of_check,
        run=summary["peak_bytes"],
        process=of_run,
        done=summary["trials"]["done"],
    )


def recipe_of(size: Size, scratch: Path) -> dict[str, Any]:
    """Returns a recipe of so many trials on so many texts, which are written into `scratch`."""
    path = scratch / "texts.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *zip(distinct_texts(size.texts), _labels(), strict=False)])
    shares = {"validation": size.validation / size.texts, "test": size.test / size.texts}
    configurations = -(-size.trials // SEEDS)
    return {
        "data": {"path": str(path), "max_tokens": 32, "split": shares},
        "backbone": {"model": str(random_model("tiny", scratch))},
        "training": {"max_steps": size.steps, "precision": "fp32", "metric": "accuracy", "seeds": SEEDS},
        "method": [
            {"kind": "lora", "rank": 2, "learning_rate": [1e-3 * (1 + number) for number in range(configurations)]}
        ],
    }


def distinct_texts(number: int) -> Iterator[str]:
    """Yields so many texts of four to ten made-up words, no two the same."""
    draw, seen = random.Random(0), set[int]()
    words = ["".join(draw.choices(LETTERS, k=draw.randint(2, 9))) for _ in range(WORDS)]
    while len(seen) < number:
        text = " ".join(draw.choices(words, k=draw.randint(SHORTEST, LONGEST)))
        if hash(text) not in seen:
            seen.add(hash(text))
            yield text


def _labels() -> Iterator[str]:
    draw = random.Random(1)
    while True:
        yield draw.choice(["good", "bad"])


def _command(*arguments: str) -> tuple[Any, int]:
    """Runs a command; returns what it prints, and the peak of its resident memory in bytes."""
    command = [sys.executable, "-m", "fleetune.cli", *arguments, "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        printed = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return json.loads(printed), usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def line(size: Size, taken: Measured) -> str:
    """Returns the outcome as a row of a table."""
    cells = [f"{number:,}" for number in (size.texts, taken.done, size.validation, size.test)]
    cells += [f"{value / MIB:,.0f} MiB" for value in (taken.forecast, taken.run, taken.process, taken.check)]
    return f"| {' | '.join(cells)} | {taken.run / taken.forecast:.2f} |"


if __name__ == "__main__":
    sys.exit(main())
