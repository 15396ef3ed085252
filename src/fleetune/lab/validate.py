"""Turns tables of a recipe into configurations, and every fault in them into one line that says where and what."""

from __future__ import annotations

import difflib
import json
import math
import re
import types
from collections.abc import Iterable, Mapping
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from fleetune.errors import RecipeError

Model = TypeVar("Model", bound=BaseModel)

_EXPECTED = {
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "string_type": "a string in quotes",
    "bool_type": "true or false",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "a table",
    "model_type": "a table",
    "path_type": "a path in quotes",
    "greater_than": "a number above {gt}",
    "greater_than_equal": "a number of at least {ge}",
    "less_than": "a number below {lt}",
    "less_than_equal": "a number of at most {le}",
    "literal_error": "{expected}",
    "too_short": "at least {min_length} entries",
    "too_long": "at most {max_length} entries",
}


def checked(model: type[Model], fields: Mapping[str, Any], place: str) -> Model:
    """Returns `model` made of `fields`; nothing is converted, so that "3" is not a number.

    Args:
        model: What the table is to become.
        fields: The table as TOML gave it.
        place: Where it stands, such as `recipe.toml: [data]`.

    Raises:
        RecipeError: If a key is unknown, or a value has the wrong type or range.
    """
    refuse_unknown(fields, model.model_fields, place)
    for key, value in fields.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise RecipeError(f"{place}.{key} = {value}: a finite number was expected")
    try:
        return model.model_validate_json(json.dumps(fields, default=str), strict=True)
    except ValidationError as error:
        raise RecipeError(_describe(error, model, place)) from None


def refuse_unknown(fields: Iterable[str], known: Iterable[str], place: str) -> None:
    """Does nothing if every key is known.

    Raises:
        RecipeError: If one is not; the message names the nearest known key.
    """
    names = list(known)
    for key in fields:
        if key not in names:
            raise RecipeError(unknown_key(key, names, place))


def unknown_key(key: str, known: Iterable[str], place: str) -> str:
    """Returns the line about `key`, which `place` does not know."""
    if key == "track":
        return f"{place}.track: track stands above all tables; move it to the beginning"
    names = list(known)
    near = difflib.get_close_matches(key, names, n=1, cutoff=0.5)
    hint = f"did you mean '{near[0]}'?" if near else f"known there: {', '.join(names)}"
    return f"{place}.{key} is not a known key; {hint}"


def is_one_value(annotation: Any, value: list[Any]) -> bool:
    """Returns whether a list given for a field of this type is one value of it, and no axis of the grid.

    It is where the field takes lists, unless it is a list of lists, or of words that each are a value by themselves.
    """
    if not takes_list(annotation) or any(isinstance(entry, list) for entry in value):
        return False
    if not value:
        return True
    words = _words(annotation)
    return not all(isinstance(entry, str) and entry in words for entry in value)


def _words(annotation: Any) -> tuple[Any, ...]:
    """Returns the words that a field of this type may be by themselves."""
    origin = get_origin(annotation)
    if origin in (Union, types.UnionType):
        return tuple(word for argument in get_args(annotation) for word in _words(argument))
    return get_args(annotation) if origin is Literal else ()


def takes_list(annotation: Any) -> bool:
    """Returns whether a field of this type is a list by nature, so that a plain list is one value and no axis."""
    origin = get_origin(annotation)
    if origin in (Union, types.UnionType):
        return any(takes_list(argument) for argument in get_args(annotation))
    return annotation in (list, tuple) or origin in (list, tuple)


def _describe(error: ValidationError, model: type[BaseModel], place: str) -> str:
    faults = error.errors()
    keys = _keys_of(faults[0]["loc"], model)
    same = [fault for fault in faults if _keys_of(fault["loc"], model) == keys]
    spot = ".".join([place, *keys])
    if faults[0]["type"] == "extra_forbidden":
        return unknown_key(keys[-1], _model_at(model, keys[:-1]).model_fields, ".".join([place, *keys[:-1]]))
    if faults[0]["type"] == "missing" and isinstance(faults[0]["loc"][-1], str):
        return f"{spot} is missing"
    if faults[0]["type"] in ("missing", "unexpected_positional_argument"):
        return f"{spot} = {_shown(faults[0]['input'])}: a list of another length was expected"
    if faults[0]["type"] == "value_error":
        return f"{spot}: {faults[0]['msg'].removeprefix('Value error, ')}"
    expected = dict.fromkeys(_expectation(fault) for fault in same)
    near = _nearest_word(same)
    hint = f"; did you mean '{near}'?" if near else ""
    return f"{spot} = {_shown(faults[0]['input'])}: {' or '.join(expected)} was expected{hint}"


def _keys_of(location: tuple[int | str, ...], model: type[BaseModel]) -> list[str]:
    """Returns the part of a fault's location that stands in the recipe; pydantic adds the branch of a union."""
    keys: list[str] = []
    for part in location:
        current = _model_at(model, keys)
        if part in current.model_fields:
            keys.append(str(part))
        elif not keys or current is not _model_at(model, keys[:-1]):
            return [*keys, str(part)]
        else:
            break
    return keys


def _model_at(model: type[BaseModel], keys: list[str]) -> type[BaseModel]:
    for key in keys:
        annotation = model.model_fields[key].annotation if key in model.model_fields else None
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return model
        model = annotation
    return model


def _expectation(fault: Any) -> str:
    words = _EXPECTED.get(fault["type"])
    return words.format(**fault.get("ctx", {})) if words else str(fault["msg"]).removeprefix("Input should be ")


def _nearest_word(faults: list[Any]) -> str | None:
    for fault in faults:
        if fault["type"] == "literal_error" and isinstance(fault["input"], str):
            words = re.findall(r"'([^']*)'", fault["ctx"]["expected"])
            return next(iter(difflib.get_close_matches(fault["input"], words, n=1, cutoff=0.6)), None)
    return None


def _shown(value: Any) -> str:
    text = json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."
