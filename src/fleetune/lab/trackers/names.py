"""Which trackers there are, and whether they can be used; needs none of them."""

from __future__ import annotations

import difflib
import importlib.util
from collections.abc import Iterable
from typing import Any

from fleetune.errors import MissingExtraError, RecipeError

TRACKERS = ("wandb", "mlflow", "tensorboard")


def tracker_names(value: Any, place: str) -> tuple[str, ...]:
    """Returns the names in `value`, which is a name or a list of names; an empty list is no tracker.

    Raises:
        RecipeError: If it is anything else, or a name is not known or stands twice; `place` says where it was found.
    """
    names = [value] if isinstance(value, str) else value
    expected = f"one of {', '.join(TRACKERS)}, or a list of them, was expected"
    if not isinstance(names, list | tuple):
        raise RecipeError(f"{place} = {value!r}: {expected}")
    for name in names:
        if name not in TRACKERS:
            near = difflib.get_close_matches(str(name), TRACKERS, n=1, cutoff=0.5)
            hint = f"did you mean '{near[0]}'?" if near else expected
            raise RecipeError(f"{place}: there is no tracker {name!r}; {hint}")
        if names.count(name) > 1:
            raise RecipeError(f"{place}: '{name}' stands there twice")
    return tuple(names)


def require_packages(names: Iterable[str]) -> None:
    """Does nothing if the package of each tracker is installed; a tracker has its package's name.

    Raises:
        MissingExtraError: If one is not.
    """
    for name in names:
        if not _is_installed(name):
            raise MissingExtraError(name, "track", f'track = "{name}"')


def _is_installed(package: str) -> bool:
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        return False
    # Without an origin it is a mere folder of that name, such as the `wandb` that W&B leaves where it ran.
    return spec is not None and spec.origin is not None
