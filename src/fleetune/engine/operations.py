"""Floating-point operations of the plain computation, for forecasts and for the share of the peak a run used."""

from __future__ import annotations

import math
import time
from functools import cache
from math import prod

from fleetune.methods.base import BackboneShape, Method
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
