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
    from fleetune.methods.adalora import AdaLoRA
    from fleetune.methods.bitfit import BitFit
    from fleetune.methods.full import Full
    from fleetune.methods.head import Head
    from fleetune.methods.houlsby import Houlsby
    from fleetune.methods.ia3 import IA3
    from fleetune.methods.lora import LoRA
    from fleetune.methods.majority import Majority
    from fleetune.methods.norm import Norm
    from fleetune.methods.peft_bridge import Peft
    from fleetune.methods.pfeiffer import Pfeiffer
    from fleetune.methods.prefix import Prefix
    from fleetune.methods.prompt import Prompt
    from fleetune.methods.tfidf import TfIdf
    from fleetune.methods.vera import VeRA
    from fleetune.methods.zero_shot import ZeroShot

__version__ = "0.1.0"

__all__ = [  # noqa: RUF022  plain order, as sorted() gives it
    "AdaLoRA",
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
    "Houlsby",
    "IA3",
    "LoRA",
    "Majority",
    "MethodError",
    "MissingExtraError",
    "Norm",
    "Peft",
    "Pfeiffer",
    "Prefix",
    "Prompt",
    "RecipeError",
    "RunError",
    "RunLockedError",
    "TextClassifier",
    "TfIdf",
    "TrialFailedError",
    "UserError",
    "VeRA",
    "ZeroShot",
    "__version__",
]

_HOMES = {
    "AdaLoRA": "methods.adalora",
    "BitFit": "methods.bitfit",
    "Experiment": "experiment",
    "ExperimentResult": "experiment",
    "Full": "methods.full",
    "Head": "methods.head",
    "Houlsby": "methods.houlsby",
    "IA3": "methods.ia3",
    "LoRA": "methods.lora",
    "Majority": "methods.majority",
    "Norm": "methods.norm",
    "Peft": "methods.peft_bridge",
    "Pfeiffer": "methods.pfeiffer",
    "Prefix": "methods.prefix",
    "Prompt": "methods.prompt",
    "TextClassifier": "classifier",
    "TfIdf": "methods.tfidf",
    "VeRA": "methods.vera",
    "ZeroShot": "methods.zero_shot",
}


def __getattr__(name: str) -> Any:
    """Returns a public name from the module that has it, imported at its first use."""
    if name not in __all__:
        raise AttributeError(f"module 'fleetune' has no attribute '{name}'")
    return getattr(importlib.import_module(f"fleetune.{_HOMES.get(name, 'errors')}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
