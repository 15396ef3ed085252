"""Looks at everything a run would do and keeps nothing: audits, trials with their cost, fleets, warnings."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from fleetune.data.audit import Audit
from fleetune.data.config import DataConfig
from fleetune.engine.forecast import Forecast
from fleetune.engine.optimizers import optimizer_notes
from fleetune.lab.baseline_forecasts import FleetForecast, Say
from fleetune.lab.forecasts import forecast_fleets
from fleetune.lab.inputs import Inputs, audit_with, gather_inputs, tokens_for
from fleetune.lab.plan import Trial
from fleetune.lab.recipe import Recipe
from fleetune.memory import available_bytes, begin_peak, peak_bytes, used_bytes
from fleetune.methods import is_baseline
from fleetune.runtime import is_busy

FEW_SEEDS = 3
MANY_TRUNCATED = 0.05
FEW_TEXTS = 100


@dataclass(frozen=True)
class Check:
    """What a run of a recipe would be.

    Attributes:
        inputs: Data, plan and parameter counts.
        audits: By data name, with token counts; those of the first backbone's tokenizer.
        fleets: What is known of each fleet of the plan, in its order.
        memory_bytes: What this process can have in all, on the device that trains.
        warnings: What may make the result less than it seems.
    """

    inputs: Inputs
    audits: dict[str, Audit]
    fleets: tuple[FleetForecast, ...]
    memory_bytes: int
    warnings: tuple[str, ...]

    @property
    def seconds(self) -> float:
        """Forecast of the whole run."""
        return sum(fleet.whole.seconds for fleet in self.fleets)

    @property
    def curve_trials(self) -> int:
        """How many of the trials a learning curve over data size adds to those on all training texts."""
        return sum(trial.train_share < 1.0 for trial in self.inputs.plan.trials)

    @cached_property
    def forecasts(self) -> dict[str, Forecast]:
        """What each trial is expected to take, by its id."""
        return {name: forecast for fleet in self.fleets for name, forecast in fleet.trials.items()}

    def to_json(self) -> dict[str, Any]:
        """Returns what `fleetune check --json` prints."""
        return {
            "data": [audit.to_json() for audit in self.audits.values()],
            "trials": [self._trial(trial) for trial in self.inputs.plan.trials],
            "fleets": [
                {
                    "trials": [trial.id for trial in fleet.trials],
                    "layout": known.facts.layout,
                    "layout_reason": known.facts.layout_reason,
                    "precision": known.facts.precision,
                    "forecast": _forecast_json(known.whole),
                }
                for fleet, known in zip(self.inputs.plan.fleets, self.fleets, strict=True)
            ],
            "warnings": list(self.warnings),
        }

    def _trial(self, trial: Trial) -> dict[str, Any]:
        return {
            "id": trial.id,
            "name": trial.name,
            "data": trial.data.name,
            "backbone": trial.backbone.name,
            "method": trial.method.kind,
            "settings": trial.method.settings,
            "training": trial.training_settings,
            "seed": trial.seed,
            "train_share": trial.train_share,
            "parameters": self.inputs.parameters[trial.id],
            "forecast": _forecast_json(self.forecasts[trial.id]),
        }


def _forecast_json(forecast: Forecast) -> dict[str, float]:
    return {"seconds": round(forecast.seconds, 1), "peak_bytes": forecast.peak_bytes}


def check(recipe: Recipe, say: Say = lambda line: None) -> Check:
    """Returns what a run of `recipe` would be; tells `say` what it looks at.

    Raises:
        UserError: If the recipe, its data or a backbone cannot be used.
    """
    if is_busy():
        say("other programs keep this machine busy: the forecasts will be too long")
    begin_peak()
    inputs = gather_inputs(recipe)
    with tempfile.TemporaryDirectory(prefix="fleetune-") as cache:
        tokens = {
            (data.name, backbone.name): tokens_for(inputs.prepared[data.name], backbone, data, Path(cache) / str(place))
            for data in recipe.data
            for place, backbone in enumerate(recipe.backbones)
        }
        audits = {data.name: audit_with(inputs.prepared[data.name].audit, data,
                                        tokens[data.name, recipe.backbones[0].name])
                  for data in recipe.data}  # fmt: skip
        memory = available_bytes() + used_bytes()
        fleets = forecast_fleets(inputs, tokens, say, preparing=peak_bytes())
    return Check(inputs, audits, fleets, memory, tuple(_warnings(inputs, audits, fleets, memory)))


def _cut_texts(data: DataConfig, share: float) -> str:
    """Returns the warning that a share of the texts is cut, with what reads more of them."""
    if data.long_texts == "windows":
        return f"max_windows = {data.max_windows} cuts {share:.0%} of the texts; more windows read on"
    hints = []
    if data.long_texts == "head":
        hints.append('long_texts = "head_tail" keeps their ends too')
    if isinstance(data.text, str):
        hints.append('long_texts = "windows" reads them whole')
    return "; ".join([f"max_tokens = {data.max_tokens} cuts {share:.0%} of the texts", *hints])


def _warnings(inputs: Inputs, audits: dict[str, Audit], fleets: tuple[FleetForecast, ...], memory: int) -> list[str]:
    lines: list[str] = []
    for name, audit in audits.items():
        lines += [f"{name}: {warning}" for warning in audit.warnings]
        total = audit.train + audit.validation + audit.test
        if audit.truncated and audit.truncated > MANY_TRUNCATED * total:
            data = next(data for data in inputs.recipe.data if data.name == name)
            lines.append(f"{name}: {_cut_texts(data, audit.truncated / total)}")
        if not audit.validation:
            lines.append(f"{name}: there is no validation split, so each trial's last checkpoint counts as its best")
        for split in ("validation", "test"):
            size = getattr(audit, split) - (audit.unscored if split == "test" else 0)
            if 0 < size < FEW_TEXTS:
                lines.append(f"{name}: {size} {split} texts can hardly tell methods apart")
    for entry in inputs.recipe.methods:
        if len(entry.seeds) < FEW_SEEDS and not is_baseline(entry.kind):
            lines.append(f"{entry.name or entry.kind}: {len(entry.seeds)} seed(s) cannot show a spread; type seeds = 5")
    lines += optimizer_notes(trial.training for trial in inputs.plan.trials)
    for fleet, known in zip(inputs.plan.fleets, fleets, strict=True):
        name, facts = fleet.backbone.name, known.facts
        if facts.layout == "padded":
            lines.append(f"{name} trains in the padded layout, which is slower: {facts.layout_reason}")
        lines += [
            f"{trial.name} on {name} needs about {known.trials[trial.id].peak_bytes / 2**30:.1f} GiB, more than the "
            f"{memory / 2**30:.1f} GiB there are; a smaller batch_size or max_tokens needs less"
            for trial in fleet.trials
            if known.trials[trial.id].peak_bytes > memory
        ]
    return list(dict.fromkeys(lines))
