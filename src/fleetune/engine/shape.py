"""Reads a backbone's sites and head from a model's modules, or from its `config.json` alone."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fleetune.engine.architecture import Architecture, architecture_of
from fleetune.engine.model_config import read_model_config
from fleetune.errors import BackboneError
from fleetune.methods.base import BackboneShape, Role, Site, SiteKind

if TYPE_CHECKING:
    from torch import nn


@cache
def shape_from_config(path: Path, num_labels: int) -> BackboneShape:
    """Returns the shape of the model whose `config.json` lies in folder `path`; no weights are read or made.

    Raises:
        BackboneError: If there is no `config.json`, or the family is not known.
    """
    import torch
    from transformers import AutoModelForSequenceClassification

    file = path if path.name == "config.json" else path / "config.json"
    if not file.is_file():
        raise BackboneError(f"{file} does not exist; a model folder with a config.json was expected")
    config = read_model_config(file.parent, num_labels)
    architecture = architecture_of(config.model_type)
    with torch.device("meta"):
        model = AutoModelForSequenceClassification.from_config(
            config, attn_implementation="eager", trust_remote_code=False
        )
    new = [
        f"{module}.{name}" for module in architecture.new for name, _ in model.get_submodule(module).named_parameters()
    ]
    return shape_of(model, architecture, new)


def shape_of(model: nn.Module, architecture: Architecture, new: Iterable[str]) -> BackboneShape:
    """Returns the shape of a Hugging Face classification model.

    Args:
        model: The model; its weights may be on the meta device.
        architecture: What is known of its family.
        new: Names of the parameters that the checkpoint lacks; these are the head.
    """
    head = {name: tuple(model.get_parameter(name).shape) for name in new}
    sites = _numbered(_sites(model, architecture, head))
    counted = sum(_size(site) for site in sites)
    config: Any = model.config
    return BackboneShape(
        config.model_type,
        sites,
        head,
        counted,
        attentions=_attentions(sites, config.get_text_config()),
        causal=architecture.pool == "last",
        windowed=_is_windowed(config.get_text_config()),
    )


def _sites(model: nn.Module, architecture: Architecture, head: Mapping[str, tuple[int, ...]]) -> Iterable[Site]:
    used = _used_modules(architecture)
    hub_model: Any = model
    words = hub_model.get_input_embeddings()
    for name, module in model.named_modules():
        own = _shapes(module)
        if not own or not used(name) or any(f"{name}.{key}" in head for key in own):
            continue
        role: Role = "token_embedding" if module is words else _role(name, architecture)
        yield Site(name, _kind(name, module), role, _layer(name), own)


def _numbered(sites: Iterable[Site]) -> tuple[Site, ...]:
    """Returns the sites, each with the number of the backbone's layers."""
    found = tuple(sites)
    layers = len({site.layer for site in found if site.layer is not None})
    return tuple(replace(site, num_layers=layers) for site in found)


def _shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    from fleetune.engine.quantize import QuantizedLinear

    if isinstance(module, QuantizedLinear):
        return module.shapes
    return {key: tuple(value.shape) for key, value in module.named_parameters(recurse=False)}


def _attentions(sites: Iterable[Site], config: Any) -> tuple[Site, ...]:
    """Returns the modules that hold the projections of keys, with the shape of one token's keys and values."""
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    shapes = {"key": (heads, width), "value": (heads, width)}
    return tuple(
        Site(site.name.rpartition(".")[0], "attention", "other", site.layer, shapes, site.num_layers)
        for site in sites
        if site.role in ("key", "query_key_value")
    )


def _is_windowed(config: Any) -> bool:
    kinds = getattr(config, "layer_types", None)
    if kinds is not None:
        return any(kind != "full_attention" for kind in kinds)
    return getattr(config, "sliding_window", None) is not None


def _used_modules(architecture: Architecture) -> Any:
    """Returns a test for paths that classification calls: the backbone without a pooler that no stage names."""
    stages = {stage.name for stage in architecture.stages if stage.kind == "module"}
    pooler = f"{architecture.base}.pooler"

    def used(name: str) -> bool:
        inside = name.startswith(architecture.base + ".") and not name.startswith(pooler)
        return inside or name in stages

    return used


def _kind(name: str, module: nn.Module) -> SiteKind:
    from torch import nn

    from fleetune.engine.quantize import QuantizedLinear

    if isinstance(module, nn.Linear | QuantizedLinear):
        return "linear"
    if isinstance(module, nn.Embedding):
        return "embedding"
    if isinstance(module, nn.Conv1d):
        return "convolution"
    if "norm" in type(module).__name__.lower():
        return "norm"
    raise BackboneError(f"module {name} ({type(module).__name__}) holds parameters and is of no kind known here")


def _role(name: str, architecture: Architecture) -> Role:
    ends = [end for end in architecture.roles if name.endswith("." + end)]
    return architecture.roles[max(ends, key=len)] if ends and _layer(name) is not None else "other"


def _layer(name: str) -> int | None:
    found = re.search(r"\.(\d+)\.", name)
    return int(found[1]) if found else None


def _size(site: Site) -> int:
    total = 0
    for shape in site.shapes.values():
        size = 1
        for length in shape:
            size *= length
        total += size
    return total
