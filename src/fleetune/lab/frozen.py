"""The recipe that a run was made with, as its readers have it: the ledger's, which is sealed, and not the file's."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from typing import Any

import tomli_w

from fleetune.errors import RecipeError
from fleetune.lab.folder import RunFolder
from fleetune.lab.limits import parsed, read_bytes
from fleetune.lab.recipe import Recipe, load_recipe, recipe_from


def frozen_recipe(place: RunFolder, meta: Mapping[str, Any]) -> Recipe:
    """Returns the recipe of a run, whatever became of its file; the file's where an older version made the run.

    Raises:
        RecipeError: If it is no recipe.
    """
    if "recipe" not in meta:
        return load_recipe(place.recipe)
    return recipe_from(meta["recipe"], place.path, str(place.recipe), place.recipe.stem)


def frozen_text(place: RunFolder, meta: Mapping[str, Any]) -> str:
    """Returns the recipe of a run as TOML: its file, to the byte, where that says what the ledger does.

    A file that was damaged, changed by hand or deleted gives the ledger's recipe: its trials came of no other. Where
    neither is there, the text is empty.
    """
    if "recipe" not in meta:
        return place.recipe.read_bytes().decode() if place.recipe.exists() else ""
    try:
        text = read_bytes(place.recipe).decode()
        if parsed(text, place.recipe.name) == meta["recipe"]:
            return text
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, RecipeError):
        pass
    return tomli_w.dumps(meta["recipe"])
