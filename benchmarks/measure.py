"""The peak of this machine's matrix products."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from statistics import median

import torch

from fleetune.methods.base import BackboneShape
from fleetune.runtime import device, pick_precision, torch_dtype

TOKENS = 4096
BURSTS = 5
BURST_SECONDS = 0.1


def layer_products(shape: BackboneShape) -> list[tuple[int, int]]:
    """Returns input and output width of the linear modules in the backbone's layers, each pair once."""
    linear = (site for site in shape.sites if site.kind == "linear" and site.layer is not None)
    return sorted({(site.in_features, site.out_features) for site in linear})


def matrix_product_rate(products: Iterable[tuple[int, int]]) -> float:
    """Returns floating-point operations a second of the fastest product of 4,096 tokens with one of the widths.

    In bf16 where the device has it in hardware, else in fp32, with all threads; a product's rate is the median of
    several bursts.
    """
    with torch.inference_mode():
        return max(_rate_of(width, out) for width, out in products)


def _rate_of(width: int, out: int) -> float:
    dtype = torch_dtype(pick_precision("auto"))
    x = torch.randn(TOKENS, width, device=device()).to(dtype)
    weight = torch.randn(out, width, device=device()).to(dtype)
    # Written into memory that is there: a fresh result would be paged in each time.
    result = torch.empty(TOKENS, out, dtype=dtype, device=device())

    def multiply() -> None:
        torch.mm(x, weight.T, out=result)

    multiply()
    calls = median(_calls_per_second(multiply) for _ in range(BURSTS))
    return 2.0 * TOKENS * width * out * calls


def _calls_per_second(call: Callable[[], None]) -> float:
    calls, seconds, started = 0, 0.0, time.perf_counter()
    while seconds < BURST_SECONDS:
        # GPU calls return at once: several are made before the clock is read.
        for _ in range(10):
            call()
        if device().type == "cuda":
            torch.cuda.synchronize()
        calls, seconds = calls + 10, time.perf_counter() - started
    return calls / seconds
