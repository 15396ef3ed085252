"""What a user asks for: data, backbones, methods, training and seeds, read from TOML and checked key by key."""

from __future__ import annotations

import tomllib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from fleetune import methods
from fleetune.compare.costs import Cost
from fleetune.data.config import DataConfig
from fleetune.engine.config import CHECKPOINT_SECONDS, BackboneConfig, TrainingConfig
from fleetune.errors import RecipeError
from fleetune.lab.limits import MOST_CONFIGURATIONS, MOST_TABLES, MOST_TRIALS, parsed, read_bytes, refuse_extremes
from fleetune.lab.method_entries import MethodEntry, method_document, method_entry
from fleetune.lab.overrides import Document, apply_overrides
from fleetune.lab.trackers.names import tracker_names
from fleetune.lab.validate import checked, refuse_unknown, unknown_key
from fleetune.redaction import holds_login

TABLES = ("data", "backbone", "training", "method", "compare")
TRACK = "track"
SAVING = "checkpoint_seconds"
"""Stands in [training], and is no setting of a trial: it changes neither what one is nor what comes of it."""
EMBEDDED = "embedded:"
MOST_PAIRINGS = 1_000_000
PATHS = ("path", "train", "validation", "test")
"""Keys of `[data]` that name files."""

Named = TypeVar("Named", DataConfig, BackboneConfig)


class SavingConfig(BaseModel):
    """How often a run saves itself; nothing that is trained hangs on it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    checkpoint_seconds: float = Field(default=CHECKPOINT_SECONDS, ge=0.0, allow_inf_nan=False)
    """Time between two checkpoints of a fleet: what a run that is killed does again, with an evaluation under way."""


class CompareConfig(BaseModel):
    """How configurations are compared; nothing that is trained hangs on it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    cost: Cost = "trainable"
    """By which cost the cheapest of those that nothing tells apart is recommended: trained parameters, bytes of the
    bundle, seconds of training, or operations of predicting a text (`serving`)."""


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
        cost: By which cost the cheapest of equals is recommended; no part of what a trial is either.
        checkpoint_seconds: Time between two checkpoints; no part of what a trial is either.
    """

    base: Path
    data: tuple[DataConfig, ...]
    backbones: tuple[BackboneConfig, ...]
    methods: tuple[MethodEntry, ...]
    document: Document = field(repr=False)
    name: str = "experiment"
    track: tuple[str, ...] = ()
    cost: Cost = "trainable"
    checkpoint_seconds: float = CHECKPOINT_SECONDS

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
    refuse_extremes(document, source)
    for key in document:
        if key in DataConfig.model_fields and key not in TABLES:
            raise RecipeError(f"{source}: {key} is a key of [data]; put it there")
        if key not in (*TABLES, TRACK):
            hint = unknown_key(key, (*TABLES, TRACK), "").split("; ", 1)[1]
            raise RecipeError(f"{source}: [{key}] is not a known table; {hint}")
    _refuse_logins(document, source)
    data = _named(document, "data", DataConfig, source, _data_name)
    _check_metrics(data, source)
    backbones = _named(document, "backbone", BackboneConfig, source, _backbone_name)
    training = document.get("training", {})
    if not isinstance(training, dict):
        raise RecipeError(f"{source}: training is a table; write [training] above its keys")
    refuse_unknown(training, [*TrainingConfig.model_fields, "seeds", SAVING], f"{source}: [training]")
    own = {key: value for key, value in training.items() if key == SAVING}
    saving = checked(SavingConfig, own, f"{source}: [training]")
    training = {key: value for key, value in training.items() if key != SAVING}
    entries = _tables(document, "method", source)
    if not entries:
        raise RecipeError(f'{source}: no method is given; add [[method]] and below it kind = "lora"')
    known = {"data": [one.name for one in data], "backbone": [one.name for one in backbones]}
    found = _entries(entries, training, source, known)
    _require_methods(data, backbones, found, source)
    backbones = tuple(_found_from(base, backbone) for backbone in backbones)
    track = tracker_names(document.get(TRACK, []), f"{source}: {TRACK}")
    compare = document.get("compare", {})
    if not isinstance(compare, dict):
        raise RecipeError(f"{source}: compare is a table; write [compare] above its keys")
    cost = checked(CompareConfig, compare, f"{source}: [compare]").cost
    return Recipe(base.resolve(), data, backbones, found, document, name, track, cost, saving.checkpoint_seconds)


def resolved(recipe: Recipe) -> Document:
    """Returns tables that give the same recipe from any folder and with any later version's defaults."""
    trained = [entry for entry in recipe.methods if not methods.is_baseline(entry.kind)]
    return {
        **({TRACK: list(recipe.track)} if recipe.track else {}),
        "data": [_absolute(config, recipe.base) for config in recipe.data],
        "backbone": [config.model_dump(mode="json", exclude_none=True) for config in recipe.backbones],
        "training": {"seeds": list((trained or recipe.methods)[0].seeds), "metric": recipe.metric,
                     SAVING: recipe.checkpoint_seconds},
        "compare": {"cost": recipe.cost},
        "method": [method_document(configuration, entry) for entry in recipe.methods
                   for configuration in entry.configurations],
    }  # fmt: skip


def _read(path: Path) -> Document:
    try:
        text = read_bytes(path).decode("utf-8-sig")
    except FileNotFoundError:
        raise RecipeError(f"{path} does not exist.\nType: fleetune init DATA_FILE, which writes a recipe") from None
    except IsADirectoryError:
        raise RecipeError(f"{path} is a folder; a recipe is a TOML file") from None
    except OSError as error:
        raise RecipeError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path} is not UTF-8 (byte {error.start}); a recipe is a TOML file in UTF-8") from None
    except ValueError:
        raise RecipeError(f"{str(path)[:80]!r} is no name of a file") from None
    try:
        return parsed(text, str(path))
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"{path} is not TOML: {error}") from None


def _entries(
    tables: Sequence[tuple[str, Document]], training: Document, source: str, known: dict[str, list[str]]
) -> tuple[MethodEntry, ...]:
    found: list[MethodEntry] = []
    for place, table in tables:
        found.append(method_entry(table, training, f"{source}: {place}", f"{source}: [training]", known))
        points = sum(len(entry.configurations) for entry in found)
        if points > MOST_CONFIGURATIONS:
            raise RecipeError(
                f"{source}: its methods' grids have more than {MOST_CONFIGURATIONS:,} points together.\n"
                "Take values out of their lists, or make several recipes of it"
            )
    return tuple(found)


def _tables(document: Document, key: str, source: str) -> list[tuple[str, Document]]:
    """Returns each table under `key` with its place; `[key]` and `[[key]]` are both right."""
    found = document.get(key, [])
    if isinstance(found, dict):
        return [(f"[{key}]", found)]
    if not isinstance(found, list) or not all(isinstance(table, dict) for table in found):
        raise RecipeError(f"{source}: {key} is a table; write [{key}] above its keys")
    if len(found) > MOST_TABLES:
        raise RecipeError(
            f"{source}: [[{key}]] stands {len(found):,} times, and {MOST_TABLES:,} are the most.\n"
            "Make several recipes of it"
        )
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
    for name, times in Counter(names).items():
        if times > 1:
            raise RecipeError(f"{source}: two entries of [[{key}]] are called '{name}'; give each its own name = \"…\"")
    return named


def _refuse_logins(node: Any, source: str, place: str = "") -> None:
    """Raises RecipeError where a value has a login or a token in it: a run keeps its recipe, and a report shows it."""
    if isinstance(node, dict | list):
        for key, value in node.items() if isinstance(node, dict) else enumerate(node, start=1):
            _refuse_logins(value, source, f"{place}.{key}".lstrip("."))
    elif isinstance(node, str) and holds_login(node):
        raise RecipeError(
            f"{source}: {place} holds a login or a token, which a run's files would keep.\n"
            "Leave it out; log in by the environment (HF_TOKEN, WANDB_API_KEY …) or type: hf auth login"
        )


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
    steps = len(data) * len(backbones) * len(entries)
    if steps > MOST_PAIRINGS:
        raise RecipeError(
            f"{source}: {len(data):,} data sets, {len(backbones):,} backbones and {len(entries):,} methods "
            "are too many.\nMake several recipes of it"
        )
    used = {(one.name, other.name) for one in data for other in backbones for entry in asking
            if entry.takes(one.name, other.name)}  # fmt: skip
    for key, configs, place in (("data", data, 0), ("backbone", backbones, 1)):
        taken = {pair[place] for pair in used}
        for config in configs:
            if config.name not in taken:
                raise RecipeError(
                    f"{source}: no [[method]] takes '{config.name}'; add it to a method's {key} = […], or leave it out"
                )
    trials = sum(len(entry.configurations) * len(entry.seeds) * len(one.train_shares)
                 for one in data for other in backbones for entry in asking
                 if entry.takes(one.name, other.name))  # fmt: skip
    if trials > MOST_TRIALS:
        raise RecipeError(
            f"{source}: it asks for {trials:,} trials, and {MOST_TRIALS:,} are the most.\n"
            "Take values or seeds out of its lists, or make several recipes of it"
        )


def _data_name(config: DataConfig) -> str:
    where = config.hf or str(config.path or config.train)
    return where.replace("/", "-") if config.hf else Path(where.removeprefix(EMBEDDED)).stem


def _backbone_name(config: BackboneConfig) -> str:
    return Path(config.model.removeprefix(EMBEDDED)).name or config.model


def _found_from(base: Path, config: BackboneConfig) -> BackboneConfig:
    """Returns the configuration with a model folder beside the recipe made absolute; any other name is a hub name."""
    if config.model.startswith(EMBEDDED):
        return config
    try:
        folder = base / Path(config.model).expanduser()
        if not folder.is_dir():
            return config
    except (OSError, ValueError, RuntimeError):
        return config  # too long for a path, or the home of somebody unknown
    return config.model_copy(update={"model": str(folder.resolve())})


def _absolute(config: DataConfig, base: Path) -> Document:
    document = config.model_dump(mode="json", exclude_none=True)
    for key in PATHS:
        if key in document and not document[key].startswith(EMBEDDED):
            document[key] = str((base / Path(document[key]).expanduser()).resolve())
    return document
