"""Multiplies a recipe out into trials, and puts trials that can train together into fleets."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, TypeVar

from fleetune.data.config import DataConfig
from fleetune.engine.config import BackboneConfig, TrainingConfig
from fleetune.errors import RecipeError
from fleetune.lab.method_entries import Configuration, MethodEntry, heeded_settings
from fleetune.lab.recipe import Recipe
from fleetune.methods.base import Method
from fleetune.methods.baseline import Baseline

ID_DIGITS = 12
Item = TypeVar("Item")
_SHORT = {"rank": "r", "learning_rate": "lr", "batch_size": "bs", "target_modules": "on"}


@dataclass(frozen=True)
class Trial:
    """One fully resolved run.

    Attributes:
        id: Hash of everything that determines its result; names do not.
        name: Name of its configuration; trials that differ in their seed alone share it.
        data: Its data.
        backbone: Its backbone.
        method: The method with its settings.
        training: How it is trained.
        seed: Of data order, dropout, and initial adapter and head.
        entry: Name of its `[[method]]`, which all points of a grid share.
        train_share: Share of the training texts it is given.
    """

    id: str
    name: str
    data: DataConfig
    backbone: BackboneConfig
    method: Method
    training: TrainingConfig
    seed: int
    entry: str = ""
    train_share: float = 1.0

    @property
    def label(self) -> str:
        """Name and seed, and the share of the texts where it is not all, for lines about this one trial."""
        return trial_label(self.name, self.seed, self.train_share)

    @property
    def training_settings(self) -> dict[str, Any]:
        """What it heeds of the settings of its training, by name."""
        return heeded_settings(self.method, self.training)


def trial_label(name: str, seed: int, train_share: float = 1.0) -> str:
    """Returns what a line about one trial calls it."""
    few = f" · {100 * train_share:g} % of the texts" if train_share < 1.0 else ""
    return f"{name} seed {seed}{few}"


@dataclass(frozen=True)
class FleetPlan:
    """Trials that train together: they share data, training texts, backbone, precision and gradient checkpointing."""

    trials: tuple[Trial, ...]

    @property
    def data(self) -> DataConfig:
        """The data they share."""
        return self.trials[0].data

    @property
    def backbone(self) -> BackboneConfig:
        """The backbone they share."""
        return self.trials[0].backbone

    @property
    def train_share(self) -> float:
        """The share of the training texts that they all have."""
        return self.trials[0].train_share

    @property
    def is_baseline(self) -> bool:
        """Whether its one trial is a baseline, which trains nothing."""
        return isinstance(self.trials[0].method, Baseline)

    @property
    def reads_model(self) -> bool:
        """Whether it needs the backbone in memory."""
        return _reads_model(self.trials[0].method)

    @property
    def precision(self) -> str:
        """The precision they share, as the recipe names it."""
        return self.trials[0].training.precision


@dataclass(frozen=True)
class Plan:
    """Every trial of a recipe, and the fleets that they train in."""

    trials: tuple[Trial, ...]
    fleets: tuple[FleetPlan, ...]


Fits = Callable[[Sequence[Trial]], bool]
"""Whether trials can train together on this machine."""


def plan(recipe: Recipe, fits: Fits, data_hashes: Mapping[str, str] | None = None) -> Plan:
    """Returns data × backbone × method × axes × shares of the training texts × seeds, in the order of the recipe.

    Args:
        recipe: What is asked for.
        fits: What bounds a fleet; one trial trains in any case.
        data_hashes: Content hash of each data set by name. A trial's identity is then the texts it sees, not where
            their file lies.

    Raises:
        RecipeError: If two configurations are the same, or have the same name.
    """
    hashes = data_hashes or {}
    trials = tuple(
        _trial(data, hashes.get(data.name), backbone, configuration, name, seed, share)
        for data in recipe.data
        for backbone in recipe.backbones
        for configuration, name, seeds in _named_configurations(recipe, data, backbone)
        for share in _shares(data, configuration.method)
        for seed in seeds
    )
    _refuse_twins(trials)
    return Plan(trials, _fleets(trials, fits))


def _trial(
    data: DataConfig,
    data_hash: str | None,
    backbone: BackboneConfig,
    configuration: Configuration,
    name: str,
    seed: int,
    share: float,
) -> Trial:
    return Trial(
        _trial_id(data, data_hash, backbone, configuration, seed, share),
        name,
        data,
        backbone,
        configuration.method,
        configuration.training,
        seed,
        configuration.base_name,
        share,
    )


def _shares(data: DataConfig, method: Method) -> list[float]:
    """Returns the shares of the training texts to train on: all alone where the method reads none of them."""
    reads_them = not isinstance(method, Baseline) or method.reads_training_texts
    return data.train_shares if reads_them else [1.0]


def _first_backbone(recipe: Recipe, entry: MethodEntry, data: DataConfig) -> BackboneConfig:
    """Returns the backbone under which a method stands that reads no model, and is the same over each."""
    return next(backbone for backbone in recipe.backbones if entry.takes(data.name, backbone.name))


def _reads_model(method: Method) -> bool:
    return not isinstance(method, Baseline) or method.reads_model


def _named_configurations(
    recipe: Recipe, data: DataConfig, backbone: BackboneConfig
) -> list[tuple[Configuration, str, tuple[int, ...]]]:
    """Returns what is trained on `data` over `backbone`, by the metric of `data`, with its name and its seeds."""
    found = [
        (_scored_on(data, configuration), entry.seeds)
        for entry in recipe.methods
        for configuration in entry.configurations
        if entry.takes(data.name, backbone.name)
        and (_reads_model(configuration.method) or backbone is _first_backbone(recipe, entry, data))
    ]
    names = _configuration_names([configuration for configuration, _ in found])
    return [(configuration, name, seeds) for (configuration, seeds), name in zip(found, names, strict=True)]


def _scored_on(data: DataConfig, configuration: Configuration) -> Configuration:
    if data.metric is None:
        return configuration
    return replace(configuration, training=configuration.training.model_copy(update={"metric": data.metric}))


def _configuration_names(configurations: Sequence[Configuration]) -> list[str]:
    """Returns a name for each configuration: the method's, and the settings in which its namesakes differ."""
    facts = [
        {**_flat(configuration.method.settings), **configuration.training.model_dump(mode="json")}
        for configuration in configurations
    ]
    names = []
    for configuration, own in zip(configurations, facts, strict=True):
        namesakes = [
            other
            for other, one in zip(facts, configurations, strict=True)
            if (one.base_name, one.method.kind) == (configuration.base_name, configuration.method.kind)
        ]
        varying = [key for key in own if any(other.get(key) != own[key] for other in namesakes)]
        parts = [f"{_SHORT.get(key, key)}={_short_value(own[key])}" for key in varying]
        names.append(" ".join([configuration.base_name, *parts]))
    return names


def _flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings with those of a table under their own names."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        flat |= value if isinstance(value, dict) else {key: value}
    return flat


def _short_value(value: Any) -> str:
    if value is None:
        return "default"
    if isinstance(value, list):
        return "+".join(_short_value(entry) for entry in value)
    if isinstance(value, float):
        text = f"{value:.6g}"
        if 0 < abs(value) < 0.01:
            mantissa, _, exponent = f"{value:.5e}".partition("e")
            text = f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
        return text
    return str(value)


def _trial_id(
    data: DataConfig,
    data_hash: str | None,
    backbone: BackboneConfig,
    configuration: Configuration,
    seed: int,
    share: float,
) -> str:
    facts = {
        "data": [data_hash, data.max_tokens, *data.cutting.identity]
        if data_hash
        else data.model_dump(mode="json", exclude={"name", "metric", "slices", "curve"}),
        "backbone": backbone.model_dump(mode="json", exclude={"name"}) if _reads_model(configuration.method) else None,
        "method": [configuration.method.kind, configuration.method.settings],
        "training": heeded_settings(configuration.method, configuration.training),
        "seed": seed,
        # The seed of the split draws the share.
        **({"train": [share, data.split.seed]} if share < 1.0 else {}),
    }
    canonical = json.dumps(facts, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()[:ID_DIGITS]


def _refuse_twins(trials: Sequence[Trial]) -> None:
    by_id: dict[str, Trial] = {}
    by_label: dict[tuple[str, str, str], Trial] = {}
    for trial in trials:
        twin = by_id.setdefault(trial.id, trial)
        if twin is not trial:
            raise RecipeError(
                f"'{twin.label}' and '{trial.label}' on {trial.data.name} and {trial.backbone.name} "
                "are the same trial; remove one of them"
            )
        key = (trial.data.name, trial.backbone.name, trial.label)
        twin = by_label.setdefault(key, trial)
        if twin is not trial:
            raise RecipeError(f"two methods are called '{trial.name}'; give each its own name = \"…\"")


def _fleets(trials: Sequence[Trial], fits: Fits) -> tuple[FleetPlan, ...]:
    groups: dict[tuple[object, ...], list[Trial]] = {}
    for trial in trials:
        alone = "" if trial.method.shares_backbone else trial.id
        training = trial.training
        shared = trial.data.name, trial.train_share, trial.backbone.name
        key = (*shared, training.precision, training.gradient_checkpointing, alone)
        groups.setdefault(key, []).append(trial)
    return tuple(FleetPlan(part) for group in groups.values() for part in even_parts(group, fits))


def even_parts(items: Sequence[Item], fits: Callable[[Sequence[Item]], bool]) -> list[tuple[Item, ...]]:
    """Returns the items in order in as few parts as fit, none more than one item larger than another.

    One item by itself is not asked whether it fits.
    """
    for count in range(1, len(items)):
        borders = [len(items) * part // count for part in range(count + 1)]
        parts = [tuple(items[start:end]) for start, end in pairwise(borders)]
        if all(len(part) == 1 or fits(part) for part in parts):
            return parts
    return [(item,) for item in items]
