"""Products of small fp32 matrices that lie in a core's own cache.

A text of a tweet's length has attention matrices of some 30 x 30: too small for a library's product to reach half
of the processor's rate. Here eight rows times eight or sixteen columns stay in vector registers.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from fleetune.engine.kernels.numbers import LANES, kernel

ROWS = 8
"""Row counts of a product's result are rounded up to a multiple of this, column counts likewise."""


def _make_tile(columns: int) -> Any:
    @intrinsic
    def tile(
        context: Any, c: Any, c_row: Any, a: Any, a_row: Any, a_column: Any, b: Any, b_row: Any, depth: Any
    ) -> Any:
        """Sets C `(8, columns)` to A `(8, depth)` times B `(depth, columns)`; addresses, and strides in elements."""
        return types.void(*[types.intp] * 8), _generate

    def _generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        c, c_row, a, a_row, a_column, b, b_row, depth = arguments
        number, index = ir.FloatType(), ir.IntType(64)
        vector, lanes = ir.VectorType(number, columns), ir.VectorType(ir.IntType(32), columns)
        nothing = ir.Constant(vector, ir.Undefined)
        multiply_add = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(vector, [vector] * 3), f"llvm.fma.v{columns}f32"
        )

        def address(base: Any, offset: Any, kind: Any) -> Any:
            return builder.inttoptr(builder.add(base, builder.mul(offset, index(4))), kind.as_pointer())

        before = builder.block
        body, after = builder.append_basic_block("tile"), builder.append_basic_block("tile_end")
        builder.branch(body)
        builder.position_at_end(body)
        k = builder.phi(index)
        k.add_incoming(index(0), before)
        sums = [builder.phi(vector) for _ in range(ROWS)]
        b_vector = builder.load(address(b, builder.mul(k, b_row), vector))
        b_vector.align = 4
        for row, total in enumerate(sums):
            total.add_incoming(ir.Constant(vector, [0.0] * columns), before)
            place = builder.add(builder.mul(index(row), a_row), builder.mul(k, a_column))
            factor = builder.insert_element(nothing, builder.load(address(a, place, number)), ir.IntType(32)(0))
            factors = builder.shuffle_vector(factor, nothing, ir.Constant(lanes, [0] * columns))
            total.add_incoming(builder.call(multiply_add, [factors, b_vector, total]), body)
        following = builder.add(k, index(1))
        k.add_incoming(following, body)
        builder.cbranch(builder.icmp_signed("<", following, depth), body, after)
        builder.position_at_end(after)
        for row, total in enumerate(sums):
            stored = builder.store(total.incomings[1][0], address(c, builder.mul(index(row), c_row), vector))
            stored.align = 4
        return context.get_dummy_value()

    return tile


_tile_of_16, _tile_of_8 = _make_tile(16), _make_tile(8)


@kernel
def multiply(c, c_row, m, n, a, a_row, a_column, b, b_row, depth):
    """Sets C `(m, n)` to A `(m, depth)` times B `(depth, n)`, fp32, given as addresses and strides in elements.

    `m` and `n` are multiples of 8, depth at least 1; rows of B and C are dense. A may be a transposed view.
    """
    for j in range(0, n - 8, 16):
        for i in range(0, m, 8):
            _tile_of_16(c + 4 * (i * c_row + j), c_row, a + 4 * i * a_row, a_row, a_column, b + 4 * j, b_row, depth)
    if n % 16:
        j = n - 8
        for i in range(0, m, 8):
            _tile_of_8(c + 4 * (i * c_row + j), c_row, a + 4 * i * a_row, a_row, a_column, b + 4 * j, b_row, depth)


@intrinsic
def _transpose_tile(context: Any, target: Any, target_row: Any, source: Any, source_row: Any) -> Any:
    """Sets a tile of 16 x 16 numbers to another's transpose; addresses, and strides in elements."""

    def generate(context: Any, builder: Any, _: Any, arguments: Any) -> Any:
        target, target_row, source, source_row = arguments
        index, vector = ir.IntType(64), ir.VectorType(ir.FloatType(), LANES)
        pairs = ir.VectorType(ir.IntType(32), LANES)

        def address(base: Any, stride: Any, row: int) -> Any:
            offset = builder.mul(builder.mul(stride, index(row)), index(4))
            return builder.inttoptr(builder.add(base, offset), vector.as_pointer())

        rows = [builder.load(address(source, source_row, i)) for i in range(LANES)]
        for row in rows:
            row.align = 4
        # Four times, row i and row i + 8 become a row that takes from them in turn: the transpose.
        takes = [
            ir.Constant(pairs, [x for i in range(start, start + 8) for x in (i, i + LANES)])
            for start in (0, LANES // 2)
        ]
        for _ in range(4):
            rows = [
                builder.shuffle_vector(rows[i], rows[i + LANES // 2], take) for i in range(LANES // 2) for take in takes
            ]
        for i, row in enumerate(rows):
            builder.store(row, address(target, target_row, i)).align = 4
        return context.get_dummy_value()

    return types.void(*[types.intp] * 4), generate


@kernel
def transpose(target, target_row, m, n, source, source_row):
    """Sets the target `(n, m)` to the transpose of the source `(m, n)`, fp32; `m` and `n` are multiples of 16."""
    for i in range(0, m, LANES):
        for j in range(0, n, LANES):
            _transpose_tile(
                target + 4 * (j * target_row + i), target_row, source + 4 * (i * source_row + j), source_row
            )
