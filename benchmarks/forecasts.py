"""What `fleetune check` forecasts of a workload, against what `fleetune run` then takes.

    python -m benchmarks.forecasts [w1 w2 …] [--share 1.0]

Both run as commands in processes of their own. Time is training and evaluation without loading, memory the peak of the
whole process. `docs/benchmarks.md` has the targets and results.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w

from benchmarks.inputs import data_settings, make_inputs
from benchmarks.workloads import GIB, MAX_TOKENS, WORKLOADS, Workload
from fleetune.engine.trial import TrialSpec
from fleetune.lab.ledger import LedgerReader

MOST_SECONDS, MOST_BYTES = 0.25, 0.15
"""A forecast may be off by this share of what was taken."""


@dataclass(frozen=True)
class Outcome:
    """A forecast and what came of it."""

    name: str
    seconds: float
    taken_seconds: float
    peak_bytes: int
    taken_bytes: int

    @property
    def time_off(self) -> float:
        """How far the forecast of time is off, as a share of what was taken."""
        return self.seconds / self.taken_seconds - 1.0

    @property
    def memory_off(self) -> float:
        """How far the forecast of memory is off, as a share of what was taken."""
        return self.peak_bytes / self.taken_bytes - 1.0


def main() -> int:
    """Measures and prints; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = [name for name, workload in WORKLOADS.items() if workload.device == "cpu"]
    parser.add_argument("workloads", nargs="*", help=f"of {', '.join(known)}; all if left out")
    parser.add_argument("--share", type=float, default=1.0, help="share of the texts")
    options = parser.parse_args()
    if unknown := sorted(set(options.workloads) - set(known)):
        parser.error(f"{', '.join(unknown)}: not among {', '.join(known)}")
    print("|  | forecast | taken | off | forecast | taken | off |")
    print("| --- | --: | --: | --: | --: | --: | --: |", flush=True)
    for name in options.workloads or known:
        print(line(measured(WORKLOADS[name], options.share)), flush=True)
    return 0


def measured(workload: Workload, share: float) -> Outcome:
    """Returns what was forecast of `workload` and what it took."""
    with tempfile.TemporaryDirectory() as scratch:
        recipe, folder = Path(scratch) / "recipe.toml", Path(scratch) / "run"
        recipe.write_text(tomli_w.dumps(recipe_of(workload, share, Path(scratch))), encoding="utf-8")
        fleets = _command("check", str(recipe))["fleets"]
        run = _command("run", str(recipe), "--out", str(folder))
        with LedgerReader(folder) as ledger:
            trials = ledger.rows("SELECT status, seconds FROM trials")
    if any(trial["status"] != "done" for trial in trials):
        raise RuntimeError(f"{workload.name}: not every trial was trained")
    return Outcome(
        name=workload.name,
        seconds=sum(fleet["forecast"]["seconds"] for fleet in fleets),
        taken_seconds=sum(trial["seconds"] for trial in trials),
        peak_bytes=max(fleet["forecast"]["peak_bytes"] for fleet in fleets),
        taken_bytes=run["peak_bytes"],
    )


def recipe_of(workload: Workload, share: float, scratch: Path) -> dict[str, Any]:
    """Returns a recipe with the trials and texts of `workload`."""
    inputs = make_inputs(workload, share, scratch)
    data = data_settings(workload.corpus, inputs.texts("train"), inputs.texts("validation"))
    seeds: dict[str, int] = {}
    methods: dict[str, dict[str, Any]] = {}
    for spec in workload.trials:
        name = spec.id.rpartition("-")[0]
        seeds[name] = seeds.get(name, 0) + 1
        methods[name] = _method(spec, name) | {"seeds": seeds[name]}
    return {
        "data": data | {"max_tokens": MAX_TOKENS},
        "backbone": {"model": inputs.backbone.model},
        "training": {"epochs": 1.0, "batch_size": workload.trials[0].training.batch_size},
        "method": list(methods.values()),
    }


def _method(spec: TrialSpec, name: str) -> dict[str, Any]:
    settings = {key: value for key, value in spec.method.settings.items() if value is not None}
    return {"kind": spec.method.kind, "name": name, "learning_rate": spec.training.learning_rate, **settings}


def _command(*arguments: str) -> Any:
    command = [sys.executable, "-m", "fleetune.cli", *arguments, "--json"]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)


def line(outcome: Outcome) -> str:
    """Returns the outcome as a row of a table; what is further off than it may be is marked."""
    time_mark = "" if abs(outcome.time_off) <= MOST_SECONDS else " (missed)"
    memory_mark = "" if abs(outcome.memory_off) <= MOST_BYTES else " (missed)"
    return (
        f"| {outcome.name} | {outcome.seconds:.1f} s | {outcome.taken_seconds:.1f} s "
        f"| {outcome.time_off:+.0%}{time_mark} "
        f"| {outcome.peak_bytes / GIB:.2f} GiB | {outcome.taken_bytes / GIB:.2f} GiB "
        f"| {outcome.memory_off:+.0%}{memory_mark} |"
    )


if __name__ == "__main__":
    sys.exit(main())
