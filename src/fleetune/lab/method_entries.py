"""A recipe's `[[method]]` tables: each one a method with a grid of settings, and the seeds of its trials."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

from pydantic import BaseModel

from fleetune import methods
from fleetune.engine.config import TrainingConfig
from fleetune.errors import RecipeError
from fleetune.lab.limits import MOST_CONFIGURATIONS, MOST_SEEDS
from fleetune.lab.overrides import Document
from fleetune.lab.validate import checked, is_one_value, refuse_unknown
from fleetune.methods.base import Method
from fleetune.methods.baseline import Baseline

OWN_KEYS = ("kind", "name", "seeds", "data", "backbone")
DEFAULT_SEEDS = 3
MOST_SHOWN = 200
JUDGING = ("metric", "thresholds")
"""Training settings by which predictions are judged, whoever made them."""
NO_SEEDS = (0,)
"""Of a baseline, which gives the same each time: further seeds would pass off one result for several."""


@dataclass(frozen=True)
class Configuration:
    """One point of a method's grid: all that a trial needs besides data, backbone and seed.

    Attributes:
        base_name: The method's name in the recipe, or its kind.
        method: The method with its settings.
        training: How it is trained.
    """

    base_name: str
    method: Method
    training: TrainingConfig


@dataclass(frozen=True)
class MethodEntry:
    """One `[[method]]` of a recipe.

    Attributes:
        kind: Which method.
        name: Its name in tables, where the recipe gives one.
        seeds: One trial for each.
        configurations: Every point of its grid, in the order of the recipe's lists.
        data: Names of the data sets it trains on; None is all.
        backbones: Names of the backbones it trains over; None is all.
    """

    kind: str
    name: str | None
    seeds: tuple[int, ...]
    configurations: tuple[Configuration, ...]
    data: tuple[str, ...] | None = None
    backbones: tuple[str, ...] | None = None

    def takes(self, data: str, backbone: str) -> bool:
        """Returns whether it trains on the data set over the backbone, given by their names."""
        return (self.data is None or data in self.data) and (self.backbones is None or backbone in self.backbones)


def method_entry(
    table: Document, training: Document, place: str, training_place: str, known: Mapping[str, list[str]]
) -> MethodEntry:
    """Returns the method that a table describes.

    Args:
        table: The table.
        training: The recipe's `[training]`, which the method's own settings override.
        place: Where the table stands, for messages.
        training_place: Where `[training]` stands.
        known: Names of the data sets and the backbones, under `data` and `backbone`.

    Raises:
        RecipeError: If a key is unknown or a value is wrong.
    """
    kind, name = table.get("kind"), table.get("name")
    if not isinstance(kind, str):
        kinds = (*methods.all_methods(), *methods.all_baselines())
        raise RecipeError(f"{place}.kind is missing; one of: {', '.join(kinds)}")
    if name is not None and (not isinstance(name, str) or not name.strip()):
        raise RecipeError(f"{place}.name = {name!r}: a string in quotes was expected")
    method_class = _method_class(kind, place)
    place = f"{place} ({kind})"
    own = {key: value for key, value in table.items() if key not in OWN_KEYS}
    settings_fields, training_fields = method_class.Config.model_fields, TrainingConfig.model_fields
    refuse_unknown(own, [*settings_fields, *training_fields, *OWN_KEYS], place)
    if issubclass(method_class, Baseline):
        _refuse_unheeded(table, method_class, place)
        training = {key: value for key, value in training.items() if key in _heeded(method_class)}
    if "metric" in own or isinstance(training.get("metric"), list):
        where = place if "metric" in own else training_place
        raise RecipeError(
            f"{where}.metric: a recipe has one metric, so that its trials can be compared.\n"
            'Where a data set needs another, type metric = "…" in its [[data]]'
        )
    settings_grid = _grid({key: own[key] for key in own if key in settings_fields}, method_class.Config, place)
    own_training = {key: own[key] for key in own if key in training_fields}
    places = {key: place if key in own_training else training_place for key in TrainingConfig.model_fields}
    training_grid = _grid(
        {**{k: v for k, v in training.items() if k != "seeds"}, **own_training}, TrainingConfig, places
    )
    _refuse_large_grid(len(settings_grid) * len(training_grid), place)
    configurations = tuple(
        Configuration(
            name or kind,
            _method(method_class, settings, place),
            _training(fields, places),
        )
        for settings in settings_grid
        for fields in training_grid
    )
    restrictions = {key: _restriction(table.get(key), names, f"{place}.{key}") for key, names in known.items()}
    if issubclass(method_class, Baseline):
        return MethodEntry(kind, name, NO_SEEDS, configurations, restrictions["data"], restrictions["backbone"])
    seeds_place = place if "seeds" in table else training_place
    seeds = _seeds(table.get("seeds", training.get("seeds", DEFAULT_SEEDS)), seeds_place)
    return MethodEntry(kind, name, seeds, configurations, restrictions["data"], restrictions["backbone"])


def method_document(configuration: Configuration, entry: MethodEntry) -> Document:
    """Returns the table that gives one point of the method's grid."""
    settings = {key: value for key, value in configuration.method.settings.items() if value is not None}
    heeded = heeded_settings(configuration.method, configuration.training)
    training = {key: value for key, value in heeded.items() if value is not None and key != "metric"}
    named = {} if entry.name is None else {"name": entry.name}
    restricted = {key: list(names) for key, names in (("data", entry.data), ("backbone", entry.backbones)) if names}
    seeds = {} if isinstance(configuration.method, Baseline) else {"seeds": list(entry.seeds)}
    return {"kind": entry.kind, **named, **restricted, **settings, **training, **seeds}


def heeded_settings(method: Method, training: TrainingConfig) -> Document:
    """Returns the training settings that `method` heeds, by name: all, or a baseline's few and the metric."""
    settings = training.model_dump(mode="json")
    return {key: value for key, value in settings.items() if key in _heeded(type(method))}


def _restriction(value: Any, known: list[str], place: str) -> tuple[str, ...] | None:
    """Returns the names of the data sets, or backbones, that a method is restricted to."""
    if value is None:
        return None
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise RecipeError(f"{place} = {value!r}: a list of names was expected; there are: {', '.join(known)}")
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            hint = f"did you mean '{near[0]}'?" if near else f"there are: {', '.join(known)}"
            raise RecipeError(f"{place}: none is called '{name}'; {hint}")
    return tuple(dict.fromkeys(names))


def _heeded(method_class: type[Method]) -> tuple[str, ...]:
    if issubclass(method_class, Baseline):
        return (*method_class.training_fields, *JUDGING)
    return tuple(TrainingConfig.model_fields)


def _refuse_unheeded(table: Document, baseline: type[Baseline], place: str) -> None:
    """Does nothing if the table of a baseline has no training setting that says nothing to it.

    Raises:
        RecipeError: If it has one, or seeds.
    """
    heeded = (*baseline.Config.model_fields, *_heeded(baseline))
    for key in table:
        if key == "seeds":
            raise RecipeError(f"{place}.seeds: a baseline gives the same each time; take seeds out")
        if key not in heeded and key not in OWN_KEYS:
            raise RecipeError(f"{place}.{key}: a baseline has no {key}; it heeds: {', '.join(heeded)}")


def _method_class(kind: str, place: str) -> type[Method]:
    try:
        return methods.get(kind)
    except RecipeError as error:
        raise RecipeError(f"{place}.kind: {error}") from None


def _method(method_class: type[Method], settings: Document, place: str) -> Method:
    checked(method_class.Config, settings, place)
    return method_class(**settings)


def _training(fields: Document, places: Mapping[str, str]) -> TrainingConfig:
    for key, value in fields.items():
        checked(TrainingConfig, {key: value}, places[key])
    training = checked(TrainingConfig, fields, places["epochs"])
    if training.momentum and training.optimizer != "sgd":
        raise RecipeError(
            f'{places["momentum"]}.momentum is a setting of optimizer = "sgd", and the optimizer is '
            f"{training.optimizer}.\nRemove momentum, or give it in the [[method]] that has sgd"
        )
    return training


def _grid(fields: Document, model: type[BaseModel], places: str | Mapping[str, str]) -> list[Document]:
    """Returns every combination of the fields that are lists, the last one varying fastest."""
    axes: list[list[Any]] = []
    for key, value in fields.items():
        values = _axis(value, model.model_fields[key].annotation)
        if not values:
            place = places if isinstance(places, str) else places[key]
            raise RecipeError(f"{place}.{key} = []: a value, or a list of values to try, was expected")
        axes.append(values)
    _refuse_large_grid(math.prod(map(len, axes)), places if isinstance(places, str) else next(iter(places.values())))
    return [dict(zip(fields, point, strict=True)) for point in product(*axes)]


def _refuse_large_grid(points: int, place: str) -> None:
    if points > MOST_CONFIGURATIONS:
        raise RecipeError(
            f"{place}: the lists make a grid of {points:,} points, and {MOST_CONFIGURATIONS:,} are the most.\n"
            "Take values out of the lists, or make several recipes of it"
        )


def _axis(value: Any, annotation: Any) -> list[Any]:
    return value if isinstance(value, list) and not is_one_value(annotation, value) else [value]


def _seeds(value: Any, place: str) -> tuple[int, ...]:
    is_number = isinstance(value, int) and not isinstance(value, bool) and value >= 1
    is_list = isinstance(value, list) and value and all(type(seed) is int and seed >= 0 for seed in value)
    if not is_number and (not is_list or len(set(value)) != len(value)):
        shown = repr(value) if len(repr(value)) <= MOST_SHOWN else repr(value)[:MOST_SHOWN] + "…"
        raise RecipeError(f"{place}.seeds = {shown}: a number of seeds, or a list of different seeds, was expected")
    number = value if is_number else len(value)
    if number > MOST_SEEDS:
        raise RecipeError(
            f"{place}.seeds: {number:,} seeds are asked for, and {MOST_SEEDS:,} are the most.\nType seeds = 5"
        )
    return tuple(range(value)) if is_number else tuple(value)
