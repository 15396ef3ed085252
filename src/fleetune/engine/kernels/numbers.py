"""What the other kernels share: the compiler's options, bf16 in and out, vectors, and the exponential."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.core.typing.templates import ConcreteTemplate, infer_global, signature
from numba.extending import intrinsic, lower_builtin, models, overload, register_model

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
LANES = 16
"""Numbers in a vector; a processor without vectors of this size takes several of its own for each."""


class _Lanes(types.Type):
    """Sixteen fp32 numbers: what the kernels for attention compute with.

    A compiler makes vectors of a loop only for many rounds at once, and a row of a tweet's attention has some 30.
    """


lanes = _Lanes(name="lanes")
_VECTOR = ir.VectorType(ir.FloatType(), LANES)


@register_model(_Lanes)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: Any) -> None:
        super().__init__(manager, kind, _VECTOR)


def splat(builder: Any, number: Any, kind: Any = _VECTOR) -> Any:
    """Returns a vector of type `kind` with `number` everywhere."""
    nothing, index = ir.Constant(kind, ir.Undefined), ir.VectorType(ir.IntType(32), kind.count)
    first = builder.insert_element(nothing, number, ir.IntType(32)(0))
    return builder.shuffle_vector(first, nothing, ir.Constant(index, None))


def _define_operator(function: Any, name: str) -> None:
    """Gives `function` a meaning for lanes, and for lanes and a number."""
    pairs = [(lanes, lanes), (lanes, types.float32), (types.float32, lanes)]
    template = type(f"_Lanes_{name}", (ConcreteTemplate,), {"cases": [signature(lanes, *pair) for pair in pairs]})
    infer_global(function)(template)

    def generate(context: Any, builder: Any, kinds: Any, arguments: Any) -> Any:
        vectors = [x if kind == lanes else splat(builder, x) for kind, x in zip(kinds.args, arguments, strict=True)]
        return getattr(builder, name)(*vectors, flags=tuple(_FAST))

    for pair in pairs:
        lower_builtin(function, *pair)(generate)


for _function, _name in ((operator.add, "fadd"), (operator.sub, "fsub"), (operator.mul, "fmul")):
    _define_operator(_function, _name)


@intrinsic
def spread(context: Any, number: Any) -> Any:
    """Returns lanes that are all `number`."""

    def generate(_: Any, builder: Any, __: Any, arguments: Any) -> Any:
        return splat(builder, arguments[0])

    return lanes(types.float32), generate


def _place(context: Any, builder: Any, kind: Any, array: Any, index: Any) -> Any:
    """Returns the address of an array's elements from `index` on, as that of a vector."""
    data = context.make_array(kind)(context, builder, array).data
    vector = ir.VectorType(data.type.pointee, LANES)
    return builder.bitcast(builder.gep(data, [index]), vector.as_pointer())


@intrinsic
def load_lanes(context: Any, array: Any, index: Any) -> Any:
    """Returns `array[index]` to `array[index + 15]` of a dense row, bf16 or fp32."""

    def generate(context: Any, builder: Any, kinds: Any, arguments: Any) -> Any:
        vector = builder.load(_place(context, builder, kinds.args[0], *arguments))
        vector.align = array.dtype.bitwidth // 8
        if array.dtype == types.uint16:
            wide = ir.VectorType(ir.IntType(32), LANES)
            bits = builder.shl(builder.zext(vector, wide), ir.Constant(wide, [16] * LANES))
            return builder.bitcast(bits, _VECTOR)
        return vector

    return lanes(array, types.intp), generate


@intrinsic
def store_lanes(context: Any, array: Any, index: Any, vector: Any) -> Any:
    """Sets `array[index]` to `array[index + 15]` of a dense row, rounded as `store` does."""

    def generate(context: Any, builder: Any, kinds: Any, arguments: Any) -> Any:
        values = arguments[2]
        if array.dtype == types.uint16:
            wide, narrow = ir.VectorType(ir.IntType(32), LANES), ir.VectorType(ir.IntType(16), LANES)
            bits, half = builder.bitcast(values, wide), ir.Constant(wide, [16] * LANES)
            even = builder.and_(builder.lshr(bits, half), ir.Constant(wide, [1] * LANES))
            bits = builder.add(builder.add(bits, ir.Constant(wide, [0x7FFF] * LANES)), even)
            values = builder.trunc(builder.lshr(bits, half), narrow)
        stored = builder.store(values, _place(context, builder, kinds.args[0], *arguments[:2]))
        stored.align = array.dtype.bitwidth // 8
        return context.get_dummy_value()

    return types.void(array, types.intp, lanes), generate


@intrinsic
def select_between(context: Any, low: Any, high: Any, inside: Any, outside: Any) -> Any:
    """Returns lanes `low` to `high - 1` of `inside`, and `outside` in the others; the limits may lie beyond."""

    def generate(_: Any, builder: Any, __: Any, arguments: Any) -> Any:
        low, high, inside, outside = arguments
        wide = ir.VectorType(ir.IntType(32), LANES)
        first, size = (builder.trunc(x, ir.IntType(32)) for x in (low, builder.sub(high, low)))
        # As unsigned numbers, those before the first are large.
        distance = builder.sub(ir.Constant(wide, list(range(LANES))), splat(builder, first, wide))
        chosen = builder.icmp_unsigned("<", distance, splat(builder, size, wide))
        return builder.select(chosen, inside, splat(builder, outside))

    return lanes(types.intp, types.intp, lanes, types.float32), generate


def _larger(builder: Any, a: Any, b: Any) -> Any:
    return builder.select(builder.fcmp_ordered(">", a, b), a, b)


@intrinsic
def larger(context: Any, a: Any, b: Any) -> Any:
    """Returns the larger number of each two; `b` where either is NaN."""

    def generate(_: Any, builder: Any, __: Any, arguments: Any) -> Any:
        return _larger(builder, *arguments)

    return lanes(lanes, lanes), generate


def _make_reduction(combine: Callable[[Any, Any, Any], Any]) -> Any:
    @intrinsic
    def reduce(context: Any, vector: Any) -> Any:
        return types.float32(lanes), _generate

    def _generate(context: Any, builder: Any, kinds: Any, arguments: Any) -> Any:
        (vector,) = arguments
        while vector.type.count > 1:
            half = vector.type.count // 2
            index = ir.VectorType(ir.IntType(32), half)
            parts = [
                builder.shuffle_vector(vector, vector, ir.Constant(index, list(range(start, start + half))))
                for start in (0, half)
            ]
            vector = combine(builder, *parts)
        return builder.extract_element(vector, ir.IntType(32)(0))

    return reduce


largest_lane = _make_reduction(_larger)
sum_of_lanes = _make_reduction(lambda builder, a, b: builder.fadd(a, b))


@intrinsic
def _floor(context: Any, vector: Any) -> Any:
    def generate(_: Any, builder: Any, __: Any, arguments: Any) -> Any:
        kind = ir.FunctionType(_VECTOR, [_VECTOR])
        return builder.call(cgutils.get_or_insert_function(builder.module, kind, f"llvm.floor.v{LANES}f32"), arguments)

    return lanes(lanes), generate


@intrinsic
def _power_of_two(context: Any, vector: Any) -> Any:
    """Returns 2 to whole numbers between -126 and 127."""

    def generate(_: Any, builder: Any, __: Any, arguments: Any) -> Any:
        wide = ir.VectorType(ir.IntType(32), LANES)
        exponent = builder.add(builder.fptosi(arguments[0], wide), ir.Constant(wide, [127] * LANES))
        return builder.bitcast(builder.shl(exponent, ir.Constant(wide, [23] * LANES)), _VECTOR)

    return lanes(lanes), generate


_LOG2_E, _LN2_HIGH, _LN2_LOW = F(1.44269504), F(0.693359375), F(-2.12194440e-4)
_C5, _C4, _C3, _C2, _C1 = F(1.3981999507e-3), F(8.3334519073e-3), F(4.1665795894e-2), F(1.6666665459e-1), F(0.5)
_C6 = F(1.9875691500e-4)


@inline
def exponentials(x):
    """Returns e^x of lanes, for x <= 88; e^-87 below that, NaN for an infinity.

    Source: Cephes, `expf` (Moshier, 1989): range reduction to |r| <= ln(2) / 2 and a polynomial.
    """
    x = larger(spread(F(-87.0)), x) + x * F(0)
    power = _floor(x * _LOG2_E + F(0.5))
    r = x - power * _LN2_HIGH - power * _LN2_LOW
    series = ((((r * _C6 + _C5) * r + _C4) * r + _C3) * r + _C2) * r + _C1
    return (series * r * r + r + F(1.0)) * _power_of_two(power)
