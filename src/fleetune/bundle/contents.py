"""What lies in a bundle's tensor file: names and shapes, ours and those of PEFT and Hugging Face."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from fleetune.bundle.manifest import Form
from fleetune.engine.parameters import SEPARATOR
from fleetune.methods.base import BackboneShape, Method, ParameterSpec

if TYPE_CHECKING:
    from torch import Tensor

WEIGHTS: dict[Form, str] = {
    "adapter": "adapter_model.safetensors",
    "parameters": "parameters.safetensors",
    "delta": "delta.safetensors",
    "merged": "model.safetensors",
}
ADAPTER_CONFIG = "adapter_config.json"
MODEL_CONFIG = "model_config.json"
PEFT_ALWAYS_SAVES = ("classifier", "score")
"""Modules that PEFT takes for the head of a sequence classifier, whatever its configuration says."""


def form_of(method: Method, shape: BackboneShape) -> Form:
    """Returns `adapter` where PEFT knows the method, `parameters` where plain transformers do, else `delta`."""
    if method.to_peft(method.sites(shape)) is not None and method.fits_peft(shape):
        return "adapter"
    return "parameters" if method.is_plain else "delta"


def expected_shapes(method: Method, shape: BackboneShape) -> dict[str, tuple[int, ...]]:
    """Returns the shape of every tensor, by its name in a trial's state."""
    shapes = {f"{place}{SEPARATOR}{name}": spec.shape for place, name, spec in _specs(method, shape)}
    return shapes | {name: tuple(size) for name, size in shape.head.items()}


def _specs(method: Method, shape: BackboneShape) -> list[tuple[str, str, ParameterSpec]]:
    return [(place, name, spec) for place, specs in method.specs(shape).items() for name, spec in specs.items()]


def stored_names(method: Method, shape: BackboneShape, form: Form) -> dict[str, str]:
    """Returns each tensor's name in the file, by its name in a trial's state."""
    names, sites = {}, {site.name: site for site in method.sites(shape)}
    for place, name, _ in _specs(method, shape):
        own = f"{place}{SEPARATOR}{name}"
        match form:
            case "adapter":
                names[own] = method.peft_name(sites.get(place), name)
            case "delta":
                names[own] = own
            case _:
                names[own] = f"{place}.{name}"
    prefix = method.peft_prefix if form == "adapter" else ""
    return names | {name: prefix + name for name in shape.head}


def stored_shapes(method: Method, shape: BackboneShape, form: Form) -> dict[str, tuple[int, ...]]:
    """Returns each tensor's shape in the file, by its name in a trial's state."""
    shapes = expected_shapes(method, shape)
    if form != "adapter" or method.installs:
        return shapes
    return shapes | {
        f"{site.name}{SEPARATOR}{name}": method.peft_shape(name, site)
        for site in method.sites(shape)
        for name in method.parameters(site)
    }


def as_stored(method: Method, tensors: Mapping[str, Tensor]) -> tuple[Method, dict[str, Tensor]]:
    """Returns the method and the tensors that a bundle holds, both named as in a trial's state.

    Args:
        method: How it was trained.
        tensors: As `TrialParameters.state` gives them.
    """
    by_site: dict[str, dict[str, Tensor]] = {}
    head = {}
    for name, tensor in tensors.items():
        place, separator, parameter = name.rpartition(SEPARATOR)
        if separator:
            by_site.setdefault(place, {})[parameter] = tensor
        else:
            head[name] = tensor
    stored, kept = method.stored(by_site)
    named = {f"{place}{SEPARATOR}{name}": own for place, many in kept.items() for name, own in many.items()}
    return stored, named | head


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
