"""What the other kernels share: the compiler's options, bf16 in and out, and the exponential."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic, overload

# Sums may be reordered and products fused. NaN and infinity keep their meaning, or a diverging trial would go unseen.
_FAST = {"reassoc", "contract", "arcp", "nsz"}
BIT16 = np.uint32(16)


def kernel(function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns `function` compiled at its first call, free of the interpreter's lock; kept on disk where it can be."""
    options: Any = {"nogil": True, "fastmath": _FAST, "error_model": "numpy"}
    try:
        compiled: Any = njit(cache=True, **options)(function)
    except RuntimeError:
        # Neither the package's folder nor the user's cache can be written.
        compiled = njit(**options)(function)
    return compiled  # type: ignore[no-any-return]


def inline(function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns `function` for use inside kernels."""
    return njit(inline="always", fastmath=_FAST, error_model="numpy")(function)


def helper(function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns `function`, of numbers that are no NaN, for use inside kernels."""
    return njit(fastmath=True, error_model="numpy")(function)


def array_of(tensor: torch.Tensor) -> np.ndarray[Any, Any]:
    """Returns a tensor's memory as an array; bf16, which numpy lacks, as its bits."""
    if tensor.dtype == torch.bfloat16:
        return tensor.detach().view(torch.uint16).numpy()
    return tensor.detach().numpy()


@intrinsic
def float_of_bits(context: Any, bits: Any) -> Any:
    """Returns the fp32 number that `bits` stands for."""

    def generate(_: Any, builder: Any, __: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.FloatType())

    return types.float32(types.uint32), generate


@intrinsic
def bits_of_float(context: Any, number: Any) -> Any:
    """Returns the bits of an fp32 number."""

    def generate(_: Any, builder: Any, __: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.IntType(32))

    return types.uint32(types.float32), generate


def load(array, index):
    """Returns `array[index]` as fp32 where it is bf16 or fp32."""


@overload(load)
def _load(array, index):
    if array.dtype == types.uint16:
        return lambda array, index: float_of_bits(np.uint32(array[index]) << BIT16)
    return lambda array, index: array[index]


def store(array, index, value):
    """Sets `array[index]`, rounded to the nearest (even) bf16 where it is bf16."""


@overload(store)
def _store(array, index, value):
    if array.dtype == types.uint16:

        def store_bf16(array, index, value):
            bits = bits_of_float(np.float32(value))
            even = (bits >> BIT16) & np.uint32(1)
            array[index] = np.uint16((bits + np.uint32(0x7FFF) + even) >> BIT16)

        return store_bf16

    def store_as_it_is(array, index, value):
        array[index] = value

    return store_as_it_is


F = np.float32
_LOG2_E, _LN2_HIGH, _LN2_LOW = F(1.44269504), F(0.693359375), F(-2.12194440e-4)
_C5, _C4, _C3, _C2, _C1 = F(1.3981999507e-3), F(8.3334519073e-3), F(4.1665795894e-2), F(1.6666665459e-1), F(0.5)
_C6 = F(1.9875691500e-4)


@inline
def exponential(x):
    """Returns e^x, for x <= 88 and not below e^-87, in fp32, as arithmetic that a compiler turns into vectors.

    Source: Cephes, `expf` (Moshier, 1989): range reduction to |r| <= ln(2) / 2 and a polynomial.
    """
    x = x if x > F(-87.0) else x * F(0) + F(-87.0)
    power = np.floor(x * _LOG2_E + F(0.5))
    r = x - power * _LN2_HIGH - power * _LN2_LOW
    series = ((((_C6 * r + _C5) * r + _C4) * r + _C3) * r + _C2) * r + _C1
    return (series * r * r + r + F(1.0)) * float_of_bits(np.uint32(np.int32(power) + np.int32(127)) << np.uint32(23))
