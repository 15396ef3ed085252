"""What a trial's tensors start from: the method says how, the seed and the frozen weights decide the values."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from fleetune.engine.installed import fresh_tensors
from fleetune.engine.parameters import SEPARATOR, ParameterPlan, kaiming_uniform, normal
from fleetune.engine.quantize import frozen_parameter
from fleetune.engine.storage import refuse_quantized_weights
from fleetune.methods.base import Method, ParameterSpec, Site
from fleetune.runtime import random_stream

if TYPE_CHECKING:
    from torch import Tensor

    from fleetune.engine.backbone import Backbone

Start = TypeVar("Start")
HE_GAIN = 6**0.5
"""Bound of He's uniform start over that of `nn.Linear`'s (He et al., 2015, arXiv:1502.01852)."""
NORMAL_START = 0.02
"""Standard deviation of what starts at normal values."""


def plan_parameters(backbone: Backbone, method: Method, seed: int) -> dict[str, ParameterPlan]:
    """Returns what a trial of `method` has: its deltas as `site::name`, then the head by its own names.

    Raises:
        MethodError: If the method does not fit this backbone.
    """
    refuse_quantized_weights(method, backbone.shape, backbone.config)
    plans: dict[str, ParameterPlan] = {}
    sites = {site.name: site for site in method.sites(backbone.shape)}
    installed = cache(partial(fresh_tensors, backbone, method, seed))
    for place, specs in method.specs(backbone.shape).items():
        computed: Callable[[], dict[str, Tensor]] = cache(partial(_computed, backbone, method, sites.get(place), seed))
        if method.installs:
            computed = partial(_one_of, installed, place)
        for name, spec in specs.items():
            given = partial(_one_of, computed, name)
            start = given if spec.initial == "computed" else _start(backbone, place, name, spec, seed)
            plans[f"{place}{SEPARATOR}{name}"] = ParameterPlan(spec.shape, start, spec.decay, spec.rate, spec.trained)
    for name, shape in backbone.shape.head.items():
        plans[name] = ParameterPlan(shape, _head_start(backbone, name, shape, seed), decay=len(shape) > 1)
    return plans


def _computed(backbone: Backbone, method: Method, site: Site | None, seed: int) -> dict[str, Tensor]:
    assert site is not None, "what is shared has no frozen parameters to compute a start from"
    module, dtype = backbone.frozen_module(site.name), backbone.master_dtype
    stream = random_stream("initial", seed, site.name)
    return method.starts(site, lambda name: frozen_parameter(module, name).to(dtype), stream)


def _one_of(starts: Callable[[], dict[str, Start]], name: str) -> Start:
    return starts()[name]


def _start(backbone: Backbone, place: str, name: str, spec: ParameterSpec, seed: int) -> Callable[[], Tensor]:
    full = f"{place}{SEPARATOR}{name}"
    match spec.initial:
        case "frozen":
            return lambda: frozen_parameter(backbone.frozen_module(place), name)
        case "kaiming_uniform":
            return lambda: kaiming_uniform(spec.shape, seed, full)
        case "he_uniform":
            return lambda: kaiming_uniform(spec.shape, seed, full) * HE_GAIN
        case "normal":
            return lambda: normal(spec.shape, NORMAL_START, seed, full)
        case "vocabulary":
            return lambda: _of_random_tokens(backbone.frozen_module(place), spec.shape[0], seed, full)
        case _:
            return lambda: torch.full(spec.shape, 1.0 if spec.initial == "ones" else 0.0)


def _of_random_tokens(embedding: torch.nn.Module, count: int, seed: int, place: str) -> Tensor:
    """Returns the embeddings `(count, width)` of tokens drawn from the vocabulary, as the layers get them."""
    weight = embedding.get_parameter("weight")
    chosen = random_stream("initial", seed, place).integers(0, weight.shape[0], count)
    with torch.no_grad():
        embeddings: Tensor = embedding(torch.from_numpy(chosen).to(weight.device))
    return embeddings


def _head_start(backbone: Backbone, name: str, shape: tuple[int, ...], seed: int) -> Callable[[], Tensor]:
    if name in backbone.head_from_checkpoint:
        return lambda: backbone.head_from_checkpoint[name]
    if "norm" in name:
        return lambda: torch.full(shape, 1.0 if name.endswith("weight") else 0.0)
    if len(shape) == 1:
        return lambda: torch.zeros(shape)
    config: Any = backbone.model.config
    return lambda: normal(shape, float(getattr(config, "initializer_range", 0.02)), seed, name)
