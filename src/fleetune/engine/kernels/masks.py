"""Random words for dropout, each a function of a key and its place alone.

Word `e` of row `r` under `key` is 16 bits of SplitMix64's output (Steele, Lea & Flood, 2014, section 5) for the
counter `r * 2**18 + e // 4`: no state, so any part of a mask can be made anywhere, in any order, and again in the
backward pass.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from fleetune.engine.kernels.numbers import LANES, F, array_of, inline, kernel, lanes, load, splat, store

if TYPE_CHECKING:
    from torch import Tensor

U = np.uint64
QUADS_IN_ROW = U(1 << 18)
GOLDEN = U(0x9E3779B97F4A7C15)
_FIRST, _SECOND = U(0xBF58476D1CE4E5B9), U(0x94D049BB133111EB)
LOW = U(0xFFFF)


@inline
def words(key, row, quad):
    """Returns 64 random bits: the 16-bit words `4 * quad` to `4 * quad + 3` of `row`, the first in the lowest bits."""
    z = key + (U(row) * QUADS_IN_ROW + U(quad)) * GOLDEN
    z = (z ^ (z >> U(30))) * _FIRST
    z = (z ^ (z >> U(27))) * _SECOND
    return z ^ (z >> U(31))


@inline
def fill_words(buffer, key, row, width):
    """Sets `buffer`, 64-bit numbers of which each holds four words, to the first `width` words of a row."""
    for quad in range((width + 3) // 4):
        buffer[quad] = words(key, row, quad)


@intrinsic
def lanes_kept(context: Any, key: Any, row: Any, column: Any, dropped: Any, keep: Any) -> Any:
    """Returns `keep` in each lane whose word, from `row` and `column` (a multiple of 4) on, is not below `dropped`.

    The others are 0.
    """

    def generate(_: Any, builder: Any, __: Any, arguments: Any) -> Any:
        key, row, column, dropped, keep = arguments
        number, quads = ir.IntType(64), ir.VectorType(ir.IntType(64), LANES // 4)
        fates = ir.VectorType(ir.IntType(16), LANES)

        def mixed(z: Any, bits: int) -> Any:
            return builder.xor(z, builder.lshr(z, ir.Constant(quads, [bits] * quads.count)))

        place = builder.add(builder.mul(row, number(int(QUADS_IN_ROW))), builder.lshr(column, number(2)))
        base = builder.add(key, builder.mul(place, number(int(GOLDEN))))
        steps = [i * int(GOLDEN) % (1 << 64) for i in range(quads.count)]
        z = builder.add(splat(builder, base, quads), ir.Constant(quads, steps))
        z = builder.mul(mixed(z, 30), ir.Constant(quads, [int(_FIRST)] * quads.count))
        z = builder.mul(mixed(z, 27), ir.Constant(quads, [int(_SECOND)] * quads.count))
        words = builder.bitcast(mixed(z, 31), fates)
        kept = builder.icmp_unsigned(">=", words, splat(builder, builder.trunc(dropped, fates.element), fates))
        keep = splat(builder, keep)
        return builder.select(kept, keep, ir.Constant(keep.type, None))

    return lanes(types.uint64, types.int64, types.int64, types.int64, types.float32), generate


@kernel
def dropout_rows(x, rows, key, dropped, scale, out):
    """Sets `out` to `x` `(rows, width)`: zero where a word is below `dropped`, times `scale` elsewhere."""
    count, width = x.shape
    buffer, threshold = np.empty((width + 3) // 4, np.uint64), np.uint16(dropped)
    fates, factors = buffer.view(np.uint16), np.empty(width, F)
    for t in range(count):
        fill_words(buffer, key, rows[t], width)
        source, target = x[t], out[t]
        for j in range(width):
            factors[j] = scale if fates[j] >= threshold else F(0)
        for j in range(width):
            store(target, j, load(source, j) * factors[j])


def dropout(x: Tensor, rows: Tensor, key: int, dropped: int, scale: float) -> Tensor:
    """Returns `x` `(…, width)` with dropout, on the CPU; arguments as `torch_words` and `dropout_rows`."""
    x = x.contiguous()
    out = torch.empty_like(x)
    width = x.shape[-1]
    number = np.float64 if x.dtype == torch.float64 else np.float32
    dropout_rows(
        array_of(x.view(-1, width)), array_of(rows.reshape(-1)), U(key), dropped, number(scale),
        array_of(out.view(-1, width)),
    )  # fmt: skip
    return out


def torch_words(key: int, rows: Tensor, width: int) -> Tensor:
    """Returns the words `(*rows.shape, width)` as integers from 0 to 65535, on the device of `rows`."""
    quads = torch.arange(-(-width // 4), device=rows.device)
    z = (rows[..., None] * int(QUADS_IN_ROW) + quads) * _signed(int(GOLDEN)) + _signed(key)
    z = (z ^ _shift(z, 30)) * _signed(int(_FIRST))
    z = (z ^ _shift(z, 27)) * _signed(int(_SECOND))
    z = z ^ _shift(z, 31)
    parts = torch.stack([_shift(z, bits) & 0xFFFF for bits in (0, 16, 32, 48)], dim=-1)
    return parts.flatten(-2)[..., :width]


def _signed(number: int) -> int:
    """Returns the signed 64-bit number with the bits of an unsigned one: torch computes in int64, which wraps."""
    return number - (1 << 64) if number >= 1 << 63 else number


def _shift(z: Tensor, bits: int) -> Tensor:
    """Returns `z` shifted right with zeros coming in, where torch's own shift repeats the sign."""
    return (z >> bits) & ((1 << (64 - bits)) - 1) if bits else z
