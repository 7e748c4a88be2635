"""Rows times a weight matrix, by how the matrix is stored.

A coded matrix has two streams of rows, r of the reference and p of the policy, and two parts, the base B and
the difference D: y_r = B r and y_p = (B + D) p. What B rounds wrongly is wrong in both and cancels in what
a reward is made of. Where rows are rounded too, each to 8 bits with one scale a token (q below), the same is
done to them: p is r + d, linearity does the rest, and what q(r) rounds wrongly is wrong in both streams:

    y_r = B q(r)        y_p = y_r + B q(d) + D q(p)
"""

from __future__ import annotations

from functools import cached_property

import onnx_ir as ir

from stepscore_export.builder import FLOAT, MICROSOFT, GraphBuilder
from stepscore_export.layout import (
    BlockMatrix,
    ChannelMatrix,
    FloatMatrix,
    IntegerMatrix,
    Matrix,
    MergedMatrix,
    SeparateMatrix,
    SignedMatrix,
)

Streams = tuple[ir.Value, ...]
"""The same rows [n, K] in every model of the unit: one value, or reference and policy."""

EXACT_ACTIVATIONS = 1  # MatMulNBits accuracy_level: 1 computes in fp32, 4 would round activations to int8
UINT8_ZERO = 128
SMALLEST_SCALE = 1e-30  # of a row of zeros: 0 / 0 is no code


class Rows:
    """Streams of rows on their way into one or more matrices: what those share is computed once."""

    def __init__(self, g: GraphBuilder, streams: Streams) -> None:
        self._g = g
        self._streams = streams

    def times(self, matrix: Matrix) -> Streams:
        """Return the streams [n, N] of the rows times the matrix [N, K], transposed."""
        match matrix:
            case FloatMatrix():
                weight = self._g.weight(matrix.values)
                return tuple(_gemm(self._g, rows, weight) for rows in self._streams)
            case BlockMatrix():
                return tuple(_block_product(self._g, rows, matrix) for rows in self._streams)
            case SeparateMatrix():
                return self._separate(matrix)
            case MergedMatrix():
                return self._merged(matrix)
            case IntegerMatrix():
                return self._integer(matrix)

    def _separate(self, matrix: SeparateMatrix) -> Streams:
        reference, policy = (_block_product(self._g, rows, matrix.base) for rows in self._streams)
        difference = _block_product(self._g, self._streams[1], matrix.difference)
        return reference, self._g.op("Add", policy, difference)

    def _merged(self, matrix: MergedMatrix) -> Streams:
        base, difference = (_dequantized(self._g, part) for part in (matrix.base, matrix.difference))
        reference, policy = self._streams
        return (
            _gemm(self._g, reference, base),
            _gemm(self._g, policy, self._g.op("Add", base, difference)),
        )

    def _integer(self, matrix: IntegerMatrix) -> Streams:
        reference, apart, policy = self._rounded
        base = reference.times(matrix.base)
        return base, self._g.op("Sum", base, apart.times(matrix.base), policy.times(matrix.difference))

    @cached_property
    def _rounded(self) -> tuple[_RoundedRows, _RoundedRows, _RoundedRows]:
        # r, p - r and p; a tensor, not a row, of the second is zero where the models are the same
        reference, policy = self._streams
        apart = self._g.op("Sub", policy, reference)
        return (
            _RoundedRows(self._g, reference),
            _RoundedRows(self._g, apart),
            _RoundedRows(self._g, policy),
        )


class _RoundedRows:
    """Rows [n, K] as unsigned 8-bit codes around 128 and one scale a row."""

    def __init__(self, g: GraphBuilder, rows: ir.Value) -> None:
        # scale = max |x| / 127: codes 1 .. 255
        self._g = g
        largest = g.op("ReduceMax", g.op("Abs", rows), g.constant("last", -1), keepdims=1)  # [n, 1]
        scale = g.op("Mul", largest, g.constant("one_127th", 1 / 127, dtype=FLOAT))
        self._scale = g.op("Max", scale, g.constant("smallest_scale", SMALLEST_SCALE, dtype=FLOAT))
        flat = g.op("Squeeze", self._scale, g.constant("last", -1))
        zero = g.op("Expand", g.scalar("zero_code", UINT8_ZERO, ir.DataType.UINT8), g.op("Shape", flat))
        self._codes = g.op("QuantizeLinear", rows, flat, zero, axis=0)

    def times(self, matrix: ChannelMatrix) -> ir.Value:
        """Return scale * (codes - 128) @ matrix [n, N]: the integer operator scales the columns."""
        g = self._g
        product = g.op(
            "MatMulIntegerToFloat",
            self._codes,
            g.weight(matrix.codes),
            g.scalar("one", 1.0, FLOAT),
            g.weight(matrix.scales),
            g.scalar("zero_code", UINT8_ZERO, ir.DataType.UINT8),
            domain=MICROSOFT,
        )
        return g.op("Mul", product, self._scale)


def _gemm(g: GraphBuilder, rows: ir.Value, weight: ir.Value) -> ir.Value:
    return g.op("Gemm", rows, weight, transB=1)


def _block_product(g: GraphBuilder, rows: ir.Value, matrix: BlockMatrix) -> ir.Value:
    return g.op(
        "MatMulNBits",
        rows,
        g.weight(matrix.codes),
        g.weight(matrix.scales),
        domain=MICROSOFT,
        K=matrix.columns,
        N=matrix.codes.shape[0],
        bits=matrix.bits,
        block_size=matrix.block_size,
        accuracy_level=EXACT_ACTIVATIONS,
    )


def _dequantized(g: GraphBuilder, matrix: SignedMatrix) -> ir.Value:
    # codes [N, K'] -> [N, K], K' a multiple of the block size
    codes, scales = g.weight(matrix.codes), g.weight(matrix.scales)
    values = g.op("DequantizeLinear", codes, scales, axis=1, block_size=matrix.block_size)
    if matrix.codes.shape[1] == matrix.columns:
        return values
    return g.op(
        "Slice",
        values,
        g.constant("first", 0),
        g.constant("columns", matrix.columns),
        g.constant("second", 1),
    )
