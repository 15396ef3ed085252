"""Fleetune fits, compares and serves parameter-efficient fine-tunes of language models for text classification."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fleetune.classifier import TextClassifier
    from fleetune.errors import (
        BackboneError,
        BundleError,
        DataError,
        ExportMismatchError,
        FleetuneError,
        MethodError,
        MissingExtraError,
        RecipeError,
        RunError,
        RunLockedError,
        TrialFailedError,
        UserError,
    )
    from fleetune.experiment import Experiment, ExperimentResult
    from fleetune.methods.bitfit import BitFit
    from fleetune.methods.full import Full
    from fleetune.methods.head import Head
    from fleetune.methods.ia3 import IA3
    from fleetune.methods.lora import LoRA
    from fleetune.methods.majority import Majority
    from fleetune.methods.norm import Norm
    from fleetune.methods.tfidf import TfIdf
    from fleetune.methods.zero_shot import ZeroShot

__version__ = "0.1.0"

__all__ = [  # noqa: RUF022  plain order, as sorted() gives it
    "BackboneError",
    "BitFit",
    "BundleError",
    "DataError",
    "Experiment",
    "ExperimentResult",
    "ExportMismatchError",
    "FleetuneError",
    "Full",
    "Head",
    "IA3",
    "LoRA",
    "Majority",
    "MethodError",
    "MissingExtraError",
    "Norm",
    "RecipeError",
    "RunError",
    "RunLockedError",
    "TextClassifier",
    "TfIdf",
    "TrialFailedError",
    "UserError",
    "ZeroShot",
    "__version__",
]

_HOMES = {
    "BitFit": "methods.bitfit",
    "Experiment": "experiment",
    "ExperimentResult": "experiment",
    "Full": "methods.full",
    "Head": "methods.head",
    "IA3": "methods.ia3",
    "LoRA": "methods.lora",
    "Majority": "methods.majority",
    "Norm": "methods.norm",
    "TextClassifier": "classifier",
    "TfIdf": "methods.tfidf",
    "ZeroShot": "methods.zero_shot",
}


def __getattr__(name: str) -> Any:
    """Returns a public name from the module that has it, imported at its first use."""
    if name not in __all__:
        raise AttributeError(f"module 'fleetune' has no attribute '{name}'")
    return getattr(importlib.import_module(f"fleetune.{_HOMES.get(name, 'errors')}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
