"""Floating-point operations of the plain computation, for forecasts and for the share of the peak a run used."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from functools import cache
from math import prod

from fleetune.methods.base import BackboneShape, Method, ParameterSpec
from fleetune.runtime import device, torch_dtype


def forward_operations(shape: BackboneShape) -> float:
    """Returns floating-point operations of one token's forward pass: two for each weight of a layer's linear modules.

    Attention's own products, norms and the head are left out; for short texts they are a few hundredths.
    """
    linear = (site for site in shape.sites if site.kind == "linear" and site.layer is not None)
    return 2.0 * sum(prod(site.shapes["weight"]) for site in linear)


def training_operations(shape: BackboneShape, method: Method) -> float:
    """Returns floating-point operations of one token's training step, as the plain computation needs them.

    A gradient through a frozen module costs as much as its forward pass, a gradient of its weights as much again.
    """
    passes = 1
    if method.sites(shape):
        passes = 2 if method.shares_backbone or method.installs else 3
    return passes * forward_operations(shape)


def serving_operations(shape: BackboneShape, method: Method, tokens: float) -> float:
    """Returns floating-point operations of predicting one text of `tokens` tokens, the trial's delta not merged.

    To the backbone's forward pass comes what the delta adds to each token, and the method's virtual tokens are tokens.
    """
    return (tokens + method.virtual_tokens) * (forward_operations(shape) + _delta_operations(shape, method))


def _delta_operations(shape: BackboneShape, method: Method) -> float:
    """Returns what a delta adds to one token's forward pass: two operations for each weight of its matrices.

    Its vectors are left out, as the backbone's norms are, and so is what takes the place of a frozen parameter. An
    embedding is looked up. A pair of matrices that all sites share is as large as the widest one, and each site uses
    its own part of them; a prefix is met once in each layer.
    """
    sites = [site for site in method.sites(shape) if site.kind != "embedding"]
    own = sum(_matrix_weights(method.parameters(site)) for site in sites)
    shared = method.shared(shape)
    if method.prefix_tokens:
        return 2.0 * (own + _matrix_weights(shared))
    linear = [site for site in sites if site.kind == "linear"]
    widths = [site.in_features + site.out_features for site in linear]
    widest = max([site.in_features for site in linear], default=0) + max(
        [site.out_features for site in linear], default=0
    )
    pair = sum(spec.size for spec in shared.values() if len(spec.shape) == 2)
    return 2.0 * (own + (pair * sum(widths) / widest if widest else 0.0))


def _matrix_weights(specs: Mapping[str, ParameterSpec]) -> int:
    return sum(
        spec.size for spec in specs.values() if len(spec.shape) == 2 and spec.trained and spec.initial != "frozen"
    )


@cache
def matrix_product_rate(precision: str) -> float:
    """Returns this machine's peak of floating-point operations a second in matrix products, by a short probe."""
    import torch

    tokens, width, inner = 4096, 512, 2048
    x, weight = (torch.randn(rows, width, device=device()).to(torch_dtype(precision)) for rows in (tokens, inner))
    fastest, deadline = math.inf, time.perf_counter() + 0.3
    while time.perf_counter() < deadline:
        started = time.perf_counter()
        torch.nn.functional.linear(x, weight)
        if device().type == "cuda":
            torch.cuda.synchronize()
        fastest = min(fastest, time.perf_counter() - started)
    return 2.0 * tokens * width * inner / fastest
