"""Finds methods by the word that recipes use for them."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Callable
from functools import cache

from fleetune.errors import RecipeError
from fleetune.methods.base import Method
from fleetune.methods.baseline import Baseline

_METHODS: dict[str, type[Method]] = {}


def register(kind: str, source: str) -> Callable[[type[Method]], type[Method]]:
    """Returns a class decorator that makes a method known as `kind`; `source` names its paper."""

    def add(method: type[Method]) -> type[Method]:
        if kind in _METHODS and _METHODS[kind].__module__ != method.__module__:
            raise ValueError(f"two methods are called {kind}: {_METHODS[kind]} and {method}")
        method.kind, method.source = kind, source
        _METHODS[kind] = method
        return method

    return add


def all_methods() -> dict[str, type[Method]]:
    """Returns every method that trains on a backbone by its kind, sorted."""
    _import_all()
    return {kind: method for kind, method in sorted(_METHODS.items()) if not issubclass(method, Baseline)}


def all_baselines() -> dict[str, type[Baseline]]:
    """Returns every baseline by its kind, sorted."""
    _import_all()
    return {kind: method for kind, method in sorted(_METHODS.items()) if issubclass(method, Baseline)}


def is_baseline(kind: str) -> bool:
    """Returns whether `kind` is a baseline's."""
    return kind in all_baselines()


def is_floor(kind: str) -> bool:
    """Returns whether `kind` is that of a baseline which learns nothing by intent."""
    return is_baseline(kind) and all_baselines()[kind].is_floor


def reads_model(kind: str) -> bool:
    """Returns whether `kind` needs the pretrained model, as all but some baselines do."""
    return not is_baseline(kind) or all_baselines()[kind].reads_model


def get(kind: str) -> type[Method]:
    """Returns the method or baseline called `kind`.

    Raises:
        RecipeError: If there is none; the message names the nearest.
    """
    methods = {**all_methods(), **all_baselines()}
    if kind in methods:
        return methods[kind]
    near = difflib.get_close_matches(kind, methods, n=1, cutoff=0.4)
    hint = f"did you mean '{near[0]}'? " if near else ""
    raise RecipeError(f"unknown method '{kind}'; {hint}Known: {', '.join(methods)}")


@cache
def _import_all() -> None:
    package = importlib.import_module("fleetune.methods")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"fleetune.methods.{module.name}")
