"""The machine: device, precision, deterministic random words and what an environment snapshot holds."""

from __future__ import annotations

import hashlib
import importlib.metadata
import logging
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch

PACKAGES = ("fleetune", "torch", "transformers", "tokenizers", "peft", "numpy", "scipy", "scikit-learn", "pandas")


@cache
def device() -> torch.device:
    """Returns the device that trials train on: the first GPU where there is one, else the CPU."""
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def pick_precision(wish: str) -> str:
    """Returns `bf16`, `fp32` or `float64`; `auto` is bf16 where the processor multiplies it natively, else fp32."""
    if wish != "auto":
        return wish
    return "bf16" if has_fast_bf16() else "fp32"


@cache
def has_fast_bf16() -> bool:
    """Returns whether the device has bf16 matrix products in hardware (AVX512-BF16, AMX, Ampere or newer)."""
    import torch

    if device().type == "cuda":
        return torch.cuda.get_device_capability() >= (8, 0)
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def torch_dtype(precision: str) -> torch.dtype:
    """Returns torch's type for `bf16`, `fp32` or `float64`."""
    import torch

    return {"bf16": torch.bfloat16, "fp32": torch.float32, "float64": torch.float64}[precision]


def random_stream(*key: int | str) -> np.random.Generator:
    """Returns a generator that depends on `key` alone, so that a stream can be taken up again anywhere."""
    return np.random.Generator(random_words(*key))


def random_words(*key: int | str) -> np.random.SFC64:
    """Returns the bit generator for `key`: SFC64 (Doty-Humphrey, 2010), seeded by a hash of it."""
    digest = hashlib.blake2b("\x1f".join(map(str, key)).encode(), digest_size=32).digest()
    return np.random.SFC64(np.random.SeedSequence(np.frombuffer(digest, dtype=np.uint32).tolist()))


def is_busy() -> bool:
    """Returns whether other programs take a good part of the cores: worth a warning where one core is not enough."""
    import torch

    cores = os.cpu_count() or 1
    return torch.get_num_threads() > 1 and os.getloadavg()[0] > 0.75 * cores


def environment() -> dict[str, Any]:
    """Returns what another person needs to know of this machine to repeat a run."""
    import torch

    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": _processor_name(),
        "device": torch.cuda.get_device_name() if device().type == "cuda" else "cpu",
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "fast_bf16": has_fast_bf16(),
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
    }


def _processor_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


@contextmanager
def bitsandbytes_alone() -> Iterator[None]:
    """Lets bitsandbytes be imported, by peft too, without what that would do besides.

    On processors with AVX512-BF16 the import downloads compiled code from the hub where the package `kernels` is
    installed, and complains where it is not. Nothing here uses that code.
    """
    logger = logging.getLogger("bitsandbytes.backends.cpu.ops")
    level, kernels = logger.level, sys.modules.get("kernels")
    logger.setLevel(logging.ERROR)
    sys.modules["kernels"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        logger.setLevel(level)
        del sys.modules["kernels"]
        if kernels is not None:
            sys.modules["kernels"] = kernels
