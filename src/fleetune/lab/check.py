"""Looks at everything a run would do and trains nothing: audits, trials with their cost, fleets, warnings."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fleetune.data.audit import Audit
from fleetune.data.tokens import Tokens
from fleetune.engine.backbone import load_backbone
from fleetune.engine.forecast import Forecast, forecast_trial
from fleetune.lab.executors.base import BackboneFacts
from fleetune.lab.executors.local import facts_of
from fleetune.lab.inputs import Inputs, gather_inputs, tokens_for
from fleetune.lab.plan import FleetPlan, Trial
from fleetune.lab.recipe import Recipe

FEW_SEEDS = 3
MANY_TRUNCATED = 0.05
FEW_TEXTS = 100


@dataclass(frozen=True)
class Check:
    """What a run of a recipe would be.

    Attributes:
        inputs: Data, plan and parameter counts.
        audits: By data name, with token counts; those of the first backbone's tokenizer.
        backbones: What loading each fleet's backbone found out, by fleet.
        forecasts: By trial id; a fleet's memory is that of its largest forecast.
        warnings: What may make the result less than it seems.
    """

    inputs: Inputs
    audits: dict[str, Audit]
    backbones: tuple[BackboneFacts, ...]
    forecasts: dict[str, Forecast]
    warnings: tuple[str, ...]

    @property
    def seconds(self) -> float:
        """Forecast of the whole run."""
        return sum(forecast.seconds for forecast in self.forecasts.values())

    def to_json(self) -> dict[str, Any]:
        """Returns what `fleetune check --json` prints."""
        return {
            "data": [audit.to_json() for audit in self.audits.values()],
            "trials": [self._trial(trial) for trial in self.inputs.plan.trials],
            "fleets": [
                {
                    "trials": [trial.id for trial in fleet.trials],
                    "layout": facts.layout,
                    "layout_reason": facts.layout_reason,
                    "precision": facts.precision,
                }
                for fleet, facts in zip(self.inputs.plan.fleets, self.backbones, strict=True)
            ],
            "warnings": list(self.warnings),
        }

    def _trial(self, trial: Trial) -> dict[str, Any]:
        forecast = self.forecasts[trial.id]
        return {
            "id": trial.id,
            "name": trial.name,
            "data": trial.data.name,
            "backbone": trial.backbone.name,
            "method": trial.method.kind,
            "settings": trial.method.settings,
            "training": trial.training.model_dump(mode="json"),
            "seed": trial.seed,
            "parameters": self.inputs.parameters[trial.id],
            "forecast": {"seconds": round(forecast.seconds, 1), "peak_bytes": forecast.peak_bytes},
        }


def check(recipe: Recipe) -> Check:
    """Returns what a run of `recipe` would be.

    Raises:
        UserError: If the recipe, its data or a backbone cannot be used.
    """
    inputs = gather_inputs(recipe)
    with tempfile.TemporaryDirectory(prefix="fleetune-") as cache:
        tokens = {
            (data.name, backbone.name): tokens_for(
                inputs.prepared[data.name], backbone, data.max_tokens, Path(cache) / str(place)
            )
            for data in recipe.data
            for place, backbone in enumerate(recipe.backbones)
        }
        audits = {data.name: _audit(inputs, data.name, tokens[data.name, recipe.backbones[0].name])
                  for data in recipe.data}  # fmt: skip
        forecasts = {trial.id: _forecast(trial, inputs, tokens) for trial in inputs.plan.trials}
    backbones = _load_backbones(inputs)
    return Check(inputs, audits, backbones, forecasts, tuple(_warnings(inputs, audits, backbones)))


def _audit(inputs: Inputs, name: str, tokens: Tokens) -> Audit:
    max_tokens = next(data.max_tokens for data in inputs.recipe.data if data.name == name)
    return inputs.prepared[name].audit.with_tokens(tokens.full_lengths, max_tokens)


def _forecast(trial: Trial, inputs: Inputs, tokens: dict[tuple[str, str], Tokens]) -> Forecast:
    key = (trial.data.name, trial.backbone.name)
    splits = inputs.prepared[trial.data.name].dataset.splits
    sizes = {split: len(indices) for split, indices in splits.items()}
    return forecast_trial(inputs.shapes[key], trial.method, trial.training, tokens[key].lengths, sizes)


def _load_backbones(inputs: Inputs) -> tuple[BackboneFacts, ...]:
    """Returns the facts by fleet; each backbone is loaded once for each precision."""
    facts: dict[tuple[object, ...], BackboneFacts] = {}
    for fleet in inputs.plan.fleets:
        if _backbone_key(fleet) not in facts:
            num_labels = inputs.prepared[fleet.data.name].dataset.num_labels
            facts[_backbone_key(fleet)] = facts_of(load_backbone(fleet.backbone, num_labels, fleet.precision))
    return tuple(facts[_backbone_key(fleet)] for fleet in inputs.plan.fleets)


def _backbone_key(fleet: FleetPlan) -> tuple[object, ...]:
    return (fleet.backbone, fleet.precision)


def _warnings(inputs: Inputs, audits: dict[str, Audit], backbones: tuple[BackboneFacts, ...]) -> list[str]:
    lines: list[str] = []
    for name, audit in audits.items():
        lines += [f"{name}: {warning}" for warning in audit.warnings]
        total = audit.train + audit.validation + audit.test
        if audit.truncated and audit.truncated > MANY_TRUNCATED * total:
            share = audit.truncated / total
            lines.append(f"{name}: max_tokens = {audit.max_tokens} cuts {share:.0%} of the texts")
        if not audit.validation:
            lines.append(f"{name}: there is no validation split, so each trial's last checkpoint counts as its best")
        for split in ("validation", "test"):
            size = getattr(audit, split)
            if 0 < size < FEW_TEXTS:
                lines.append(f"{name}: {size} {split} texts can hardly tell methods apart")
    for entry in inputs.recipe.methods:
        if len(entry.seeds) < FEW_SEEDS:
            lines.append(f"{entry.name or entry.kind}: {len(entry.seeds)} seed(s) cannot show a spread; type seeds = 5")
    for fleet, facts in zip(inputs.plan.fleets, backbones, strict=True):
        if facts.layout == "padded":
            lines.append(f"{fleet.backbone.name} trains in the padded layout, which is slower: {facts.layout_reason}")
    return list(dict.fromkeys(lines))
