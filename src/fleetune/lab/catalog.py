"""Every method with its options, its source, and how many parameters it trains on a given model."""

from __future__ import annotations

import inspect
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from fleetune import methods
from fleetune.engine.config import BackboneConfig
from fleetune.errors import MethodError, RecipeError
from fleetune.lab.parameters import ParameterCounts, count_parameters
from fleetune.lab.validate import checked
from fleetune.methods.base import BackboneShape, Method


@dataclass(frozen=True)
class Option:
    """One setting of a method.

    Attributes:
        name: Its key in recipes; `table.name` where it lies in a table that another package defines.
        default: What it is where a recipe does not say.
        help: What it does.
        choices: The words that it takes; empty where it takes other values.
        value: What it is set to, where it lies in a table.
    """

    name: str
    default: Any
    help: str
    choices: tuple[str, ...] = ()
    value: Any = None


@dataclass(frozen=True)
class MethodEntry:
    """One method.

    Attributes:
        kind: The word for it in recipes.
        summary: What it does, in a line.
        description: What else there is to say.
        source: Where it was published.
        settings: Every setting by name.
        options: Its settings with their help.
        parameters: Numbers of parameters on the model asked about, None where there is no model.
        misfit: Why it does not fit that model, None where it does.
    """

    kind: str
    summary: str
    description: str
    source: str
    settings: dict[str, Any]
    options: tuple[Option, ...]
    parameters: ParameterCounts | None = None
    misfit: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Returns what `fleetune methods --json` prints of it."""
        return {
            "kind": self.kind,
            "summary": self.summary,
            "source": self.source,
            "settings": self.settings,
            "options": [
                {"name": one.name, "default": one.default, "help": one.help, "choices": list(one.choices)}
                for one in self.options
            ],
            "parameters": dict(self.parameters) if self.parameters is not None else None,
            "misfit": self.misfit,
        }


def list_methods(model: Path | None = None, num_labels: int = 2, chosen: str | None = None) -> list[MethodEntry]:
    """Returns every method with its defaults, then every baseline; or the one that `chosen` describes.

    Args:
        model: Folder with a `config.json`, or an embedded backbone's name; parameters are counted for it.
        num_labels: Number of the classifier's outputs.
        chosen: JSON object with `kind` and settings.

    Raises:
        RecipeError: If `chosen` is no JSON, or names an unknown method or setting.
        BackboneError: If the model's configuration cannot be read.
        MethodError: If the chosen method does not fit the model.
    """
    known = (*methods.all_methods().values(), *methods.all_baselines().values())
    wanted = [_parsed(chosen)] if chosen else [method() for method in known]
    shape = _shape(model, num_labels) if model is not None else None
    return [_entry(method, shape, strict=chosen is not None) for method in wanted]


def _parsed(text: str) -> Method:
    try:
        document = json.loads(text)
    except ValueError as error:
        raise RecipeError(
            f'--method is not JSON ({error}).\nType: --method \'{{"kind": "lora", "rank": 8}}\''
        ) from None
    if not isinstance(document, dict) or not isinstance(document.get("kind"), str):
        raise RecipeError('--method takes a JSON object with a kind.\nType: --method \'{"kind": "lora", "rank": 8}\'')
    method = methods.get(document.pop("kind"))
    checked(method.Config, document, f"--method {method.kind}")
    return method(**document)


def _shape(model: Path, num_labels: int) -> BackboneShape:
    from fleetune.engine.embedded import PREFIX
    from fleetune.engine.shape import shape_from_config
    from fleetune.engine.source import find_folder

    folder = find_folder(BackboneConfig(model=str(model))) if str(model).startswith(PREFIX) else model
    return shape_from_config(folder, num_labels)


def _entry(method: Method, shape: BackboneShape | None, strict: bool) -> MethodEntry:
    fields = type(method).Config.model_fields
    defaults = type(method).Config().model_dump(mode="json")
    parameters, misfit = None, None
    if shape is not None:
        try:
            parameters = count_parameters(method, shape)
        except MethodError as error:
            if strict:
                raise
            misfit = str(error)
    summary, _, description = inspect.cleandoc(type(method).__doc__ or "").partition("\n")
    options = [Option(name, defaults[name], _line(field.description), _words(field)) for name, field in fields.items()]
    if strict:
        options += [Option(one.name, one.default, one.help, value=one.value) for one in method.further_settings()]
    return MethodEntry(
        method.kind,
        summary,
        description.strip(),
        method.source,
        method.settings,
        tuple(options),
        parameters,
        misfit,
    )


def _line(text: str | None) -> str:
    return " ".join((text or "").split())


def _words(field: FieldInfo) -> tuple[str, ...]:
    """Returns the words of a setting that is one of several."""
    kinds = (field.annotation, *get_args(field.annotation))
    return tuple(str(word) for kind in kinds if get_origin(kind) is Literal for word in get_args(kind))
