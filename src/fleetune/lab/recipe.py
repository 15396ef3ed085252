"""What a user asks for: data, backbones, methods, training and seeds, read from TOML and checked key by key."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel

from fleetune import methods
from fleetune.data.config import DataConfig
from fleetune.engine.config import BackboneConfig, TrainingConfig
from fleetune.errors import RecipeError
from fleetune.lab.overrides import apply_overrides
from fleetune.lab.trackers.names import tracker_names
from fleetune.lab.validate import checked, is_one_value, refuse_unknown, unknown_key
from fleetune.methods.base import Method
from fleetune.methods.baseline import Baseline

TABLES = ("data", "backbone", "training", "method")
TRACK = "track"
OWN_KEYS = ("kind", "name", "seeds", "data", "backbone")
DEFAULT_SEEDS = 3
JUDGING = ("metric", "thresholds")
"""Training settings by which predictions are judged, whoever made them."""
NO_SEEDS = (0,)
"""Of a baseline, which gives the same each time: further seeds would pass off one result for several."""
EMBEDDED = "embedded:"

Document = dict[str, Any]
Named = TypeVar("Named", DataConfig, BackboneConfig)


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


@dataclass(frozen=True)
class Recipe:
    """A recipe with every key known and every value checked.

    Attributes:
        base: Folder that relative paths start from.
        data: The data sets, each with its own name.
        backbones: The backbones, each with its own name.
        methods: The methods with their grids.
        document: The tables as they were read, overrides applied.
        name: Name of the recipe: its file's stem.
        track: The trackers that show its trials while they train; no part of what a trial is.
    """

    base: Path
    data: tuple[DataConfig, ...]
    backbones: tuple[BackboneConfig, ...]
    methods: tuple[MethodEntry, ...]
    document: Document = field(repr=False)
    name: str = "experiment"
    track: tuple[str, ...] = ()

    @property
    def metric(self) -> str:
        """The metric that chooses the best checkpoint: the data sets' if it is one, else that of [training]."""
        of_training = self.methods[0].configurations[0].training.metric
        by_data = {data.metric or of_training for data in self.data}
        return by_data.pop() if len(by_data) == 1 else of_training


def load_recipe(path: Path, overrides: list[str] | None = None) -> Recipe:
    """Returns the recipe in the TOML file `path`, with `--set` overrides applied.

    Raises:
        RecipeError: If the file is missing, is no TOML, or has an unknown key or a wrong value.
    """
    return recipe_from(apply_overrides(_read(path), overrides or []), path.parent, path.name, path.stem)


def recipe_from(document: Document, base: Path, source: str, name: str = "experiment") -> Recipe:
    """Returns the recipe in `document`, whose faults are reported as standing in `source`.

    Raises:
        RecipeError: If a table is missing, a key is unknown or a value is wrong.
    """
    for key in document:
        if key not in (*TABLES, TRACK):
            hint = unknown_key(key, (*TABLES, TRACK), "").split("; ", 1)[1]
            raise RecipeError(f"{source}: [{key}] is not a known table; {hint}")
    data = _named(document, "data", DataConfig, source, _data_name)
    _check_metrics(data, source)
    backbones = _named(document, "backbone", BackboneConfig, source, _backbone_name)
    training = document.get("training", {})
    if not isinstance(training, dict):
        raise RecipeError(f"{source}: training is a table; write [training] above its keys")
    refuse_unknown(training, [*TrainingConfig.model_fields, "seeds"], f"{source}: [training]")
    entries = _tables(document, "method", source)
    if not entries:
        raise RecipeError(f'{source}: no method is given; add [[method]] and below it kind = "lora"')
    known = {"data": [one.name for one in data], "backbone": [one.name for one in backbones]}
    found = tuple(
        _method_entry(table, training, f"{source}: {place}", f"{source}: [training]", known) for place, table in entries
    )
    _require_methods(data, backbones, found, source)
    backbones = tuple(_found_from(base, backbone) for backbone in backbones)
    track = tracker_names(document.get(TRACK, []), f"{source}: {TRACK}")
    return Recipe(base.resolve(), data, backbones, found, document, name, track)


def resolved(recipe: Recipe) -> Document:
    """Returns tables that give the same recipe from any folder and with any later version's defaults."""
    trained = [entry for entry in recipe.methods if not methods.is_baseline(entry.kind)]
    return {
        **({TRACK: list(recipe.track)} if recipe.track else {}),
        "data": [_absolute(config, recipe.base) for config in recipe.data],
        "backbone": [config.model_dump(mode="json", exclude_none=True) for config in recipe.backbones],
        "training": {"seeds": list((trained or recipe.methods)[0].seeds), "metric": recipe.metric},
        "method": [_method_document(configuration, entry) for entry in recipe.methods
                   for configuration in entry.configurations],
    }  # fmt: skip


def _read(path: Path) -> Document:
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise RecipeError(f"{path} does not exist.\nType: fleetune init DATA_FILE, which writes a recipe") from None
    except IsADirectoryError:
        raise RecipeError(f"{path} is a folder; a recipe is a TOML file") from None
    except OSError as error:
        raise RecipeError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path} is not UTF-8 (byte {error.start}); a recipe is a TOML file in UTF-8") from None
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"{path} is not TOML: {error}") from None


def _tables(document: Document, key: str, source: str) -> list[tuple[str, Document]]:
    """Returns each table under `key` with its place; `[key]` and `[[key]]` are both right."""
    found = document.get(key, [])
    if isinstance(found, dict):
        return [(f"[{key}]", found)]
    if not isinstance(found, list) or not all(isinstance(table, dict) for table in found):
        raise RecipeError(f"{source}: {key} is a table; write [{key}] above its keys")
    return [(f"[[{key}]] {number}", table) for number, table in enumerate(found, start=1)]


def _named(document: Document, key: str, model: type[Named], source: str, name_of: Any) -> tuple[Named, ...]:
    tables = _tables(document, key, source)
    if not tables:
        raise RecipeError(f"{source}: [{key}] is missing.\nType: fleetune init DATA_FILE, which writes a whole recipe")
    configs = [checked(model, table, f"{source}: {place}") for place, table in tables]
    named = tuple(
        config if "name" in table else config.model_copy(update={"name": name_of(config)})
        for config, (_, table) in zip(configs, tables, strict=True)
    )
    names = [config.name for config in named]
    for name in names:
        if names.count(name) > 1:
            raise RecipeError(f"{source}: two entries of [[{key}]] are called '{name}'; give each its own name = \"…\"")
    return named


def _check_metrics(data: tuple[DataConfig, ...], source: str) -> None:
    for config in data:
        if config.metric is not None:
            place = f"{source}: [data]" if len(data) == 1 else f"{source}: [[data]] '{config.name}'"
            checked(TrainingConfig, {"metric": config.metric}, place)


def _require_methods(
    data: Sequence[DataConfig], backbones: Sequence[BackboneConfig], entries: Sequence[MethodEntry], source: str
) -> None:
    # What reads no model stands under one backbone, and asks for none.
    asking = [entry for entry in entries if len(backbones) == 1 or methods.reads_model(entry.kind)]
    used = [(one.name, other.name) for one in data for other in backbones for entry in asking
            if entry.takes(one.name, other.name)]  # fmt: skip
    for key, configs, place in (("data", data, 0), ("backbone", backbones, 1)):
        for config in configs:
            if all(pair[place] != config.name for pair in used):
                raise RecipeError(
                    f"{source}: no [[method]] takes '{config.name}'; add it to a method's {key} = […], or leave it out"
                )


def _data_name(config: DataConfig) -> str:
    where = config.hf or str(config.path or config.train)
    return where.replace("/", "-") if config.hf else Path(where.removeprefix(EMBEDDED)).stem


def _backbone_name(config: BackboneConfig) -> str:
    return Path(config.model.removeprefix(EMBEDDED)).name or config.model


def _found_from(base: Path, config: BackboneConfig) -> BackboneConfig:
    """Returns the configuration with a model folder beside the recipe made absolute; any other name is a hub name."""
    folder = base / Path(config.model).expanduser()
    if config.model.startswith(EMBEDDED) or not folder.is_dir():
        return config
    return config.model_copy(update={"model": str(folder.resolve())})


def _method_entry(
    table: Document, training: Document, place: str, training_place: str, known: Mapping[str, list[str]]
) -> MethodEntry:
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


def heeded_settings(method: Method, training: TrainingConfig) -> Document:
    """Returns the training settings that `method` heeds, by name: all, or a baseline's few and the metric."""
    settings = training.model_dump(mode="json")
    return {key: value for key, value in settings.items() if key in _heeded(type(method))}


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
    return [dict(zip(fields, point, strict=True)) for point in product(*axes)]


def _axis(value: Any, annotation: Any) -> list[Any]:
    return value if isinstance(value, list) and not is_one_value(annotation, value) else [value]


def _seeds(value: Any, place: str) -> tuple[int, ...]:
    if isinstance(value, int) and not isinstance(value, bool) and value >= 1:
        return tuple(range(value))
    is_list = isinstance(value, list) and value and all(type(seed) is int and seed >= 0 for seed in value)
    if not is_list or len(set(value)) != len(value):
        raise RecipeError(f"{place}.seeds = {value!r}: a number of seeds, or a list of different seeds, was expected")
    return tuple(value)


def _absolute(config: DataConfig, base: Path) -> Document:
    document = config.model_dump(mode="json", exclude_none=True)
    for key in ("path", "train", "validation", "test"):
        if key in document and not document[key].startswith(EMBEDDED):
            document[key] = str((base / Path(document[key]).expanduser()).resolve())
    return document


def _method_document(configuration: Configuration, entry: MethodEntry) -> Document:
    settings = {key: value for key, value in configuration.method.settings.items() if value is not None}
    heeded = heeded_settings(configuration.method, configuration.training)
    training = {key: value for key, value in heeded.items() if value is not None and key != "metric"}
    named = {} if entry.name is None else {"name": entry.name}
    restricted = {key: list(names) for key, names in (("data", entry.data), ("backbone", entry.backbones)) if names}
    seeds = {} if isinstance(configuration.method, Baseline) else {"seeds": list(entry.seeds)}
    return {"kind": entry.kind, **named, **restricted, **settings, **training, **seeds}
