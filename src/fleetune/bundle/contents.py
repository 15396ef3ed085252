"""What lies in a bundle's tensor file: names and shapes, ours and those of PEFT and Hugging Face."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from fleetune.bundle.manifest import Form
from fleetune.engine.parameters import SEPARATOR
from fleetune.methods.base import BackboneShape, Method

WEIGHTS: dict[Form, str] = {
    "adapter": "adapter_model.safetensors",
    "parameters": "parameters.safetensors",
    "merged": "model.safetensors",
}
ADAPTER_CONFIG = "adapter_config.json"
MODEL_CONFIG = "model_config.json"
PEFT_PREFIX = "base_model.model."

PEFT_ALWAYS_SAVES = ("classifier", "score")
"""Modules that PEFT takes for the head of a sequence classifier, whatever its configuration says."""


def form_of(method: Method, shape: BackboneShape) -> Form:
    """Returns `adapter` where PEFT knows the method, else `parameters`."""
    return "parameters" if method.to_peft(method.sites(shape)) is None else "adapter"


def expected_shapes(method: Method, shape: BackboneShape) -> dict[str, tuple[int, ...]]:
    """Returns the shape of every trained tensor, by its name in a trial's state."""
    shapes = {
        f"{site.name}{SEPARATOR}{name}": spec.shape
        for site in method.sites(shape)
        for name, spec in method.parameters(site).items()
    }
    return shapes | {name: tuple(size) for name, size in shape.head.items()}


def stored_names(method: Method, shape: BackboneShape, form: Form) -> dict[str, str]:
    """Returns each trained tensor's name in the file, by its name in a trial's state."""
    names = {}
    for site in method.sites(shape):
        for name in method.parameters(site):
            own = f"{site.name}{SEPARATOR}{name}"
            names[own] = (
                f"{PEFT_PREFIX}{site.name}.{method.peft_name(name)}" if form == "adapter" else f"{site.name}.{name}"
            )
    prefix = PEFT_PREFIX if form == "adapter" else ""
    return names | {name: prefix + name for name in shape.head}


def stored_shapes(method: Method, shape: BackboneShape, form: Form) -> dict[str, tuple[int, ...]]:
    """Returns each trained tensor's shape in the file, by its name in a trial's state."""
    shapes = expected_shapes(method, shape)
    if form != "adapter":
        return shapes
    return shapes | {
        f"{site.name}{SEPARATOR}{name}": method.peft_shape(name, site)
        for site in method.sites(shape)
        for name in method.parameters(site)
    }


def adapter_config(method: Method, shape: BackboneShape, model: str, revision: str | None) -> dict[str, Any]:
    """Returns PEFT's `adapter_config.json`."""
    return {
        **(method.to_peft(method.sites(shape)) or {}),
        "task_type": "SEQ_CLS",
        "base_model_name_or_path": model,
        "revision": revision,
        "inference_mode": True,
        "modules_to_save": modules_to_save(shape.head),
    }


def modules_to_save(head: Iterable[str]) -> list[str]:
    """Returns the modules that hold the head's parameters, as PEFT is to find them: by full path, no other by suffix.

    PEFT wraps `classifier` and `score` whole, so what lies below them must not be named again.
    """
    modules = [name.rpartition(".")[0] for name in head]
    tops = [module.split(".")[0] for module in modules]
    chosen = [top if top in PEFT_ALWAYS_SAVES else module for top, module in zip(tops, modules, strict=True)]
    return list(dict.fromkeys(chosen))
