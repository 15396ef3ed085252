"""Memory of one turn, and the peak of this machine's matrix products."""

from __future__ import annotations

import ctypes
import gc
import resource
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import median

import torch

from fleetune.methods.base import BackboneShape
from fleetune.runtime import device, pick_precision, torch_dtype

TOKENS = 4096
BURSTS = 5
BURST_SECONDS = 0.1
_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")


def begin_turn() -> bool:
    """Gives back memory that nothing uses and sets the peak to what is left; returns whether the peak could be set."""
    gc.collect()
    if device().type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        return True
    _trim()
    try:
        # As proc(5) has it: 5 resets the peak resident set size to its current value.
        _CLEAR_REFS.write_text("5")
    except OSError:
        return False
    return True


def _trim() -> None:
    """Hands freed memory of the C library back to the system, where it is glibc."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


def peak_bytes() -> int:
    """Returns the peak since `begin_turn`: allocated on the GPU where there is one, else resident in this process."""
    if device().type == "cuda":
        return int(torch.cuda.max_memory_allocated())
    return _status_bytes("VmHWM") or _peak_of_process()


def used_bytes() -> int:
    """Returns what is in use now, as `peak_bytes` counts it; 0 where the system does not say."""
    if device().type == "cuda":
        return int(torch.cuda.memory_allocated())
    return _status_bytes("VmRSS")


def _status_bytes(field: str) -> int:
    if _STATUS.exists():
        for line in _STATUS.read_text().splitlines():
            if line.startswith(field + ":"):
                return int(line.split()[1]) * 1024
    return 0


def _peak_of_process() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


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
