"""Multiply activations by a weight matrix, for each storage form of the matrix.

Delta compression (difference coding). A matrix serves two streams: the activations r of the reference and p
of the policy. It has two quantized parts, the base B and the difference D:

    y_r = B r           y_p = (B + D) p

The quantization error of B is common to both models and cancels to first order in the log-ratio.

W8A8. With int8 activations the same idea is applied to the activations. Let q quantize to 8 bits with one
scale per token, and let d = p - r. By linearity B p = B r + B d, so that the quantization error of q(r) is
common to both streams as well:

    y_r = B q(r)        y_p = B q(r) + B q(d) + D q(p)

For each token q(r) has the scale s_r = max |r| / 127, q(d) has s_d = max |d| / 127, and q(p) has s_p = s_r +
s_d, a bound of max |p| / 127. The GEMMs multiply the integer codes c, and per-token scales follow:

    y_r = s_r (B c_r)   y_p = y_r + s_d (B c_d) + s_p (D c_p)

`up` is left in units of s_r (`matmul_in_units`): silu(gate) * up is linear in it, and is quantized per token
anyway. The scales of the inputs of `down` have the factor s_r instead, which saves a pass over [n, I].

High-precision activations. An error of r shifts the point at which the two models are compared. In the
attention matrices and in `down`, where a few large entries set the scale, it is by far the largest of the
three activation errors. There r is represented with about 16 bits, as q(r) plus the 8-bit quantized error
q'(r - q(r)), whose scale is 1/254 of the scale of q(r). This costs a fourth integer GEMM:

    y_r = B q(r) + B q'(r - q(r))

Measured: the log-ratio error falls from 2.6 to 1.9 %.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property

import onnx_ir as ir

from stepscore_export.graphs.builder import MICROSOFT, GraphBuilder
from stepscore_export.graphs.integer_rows import QuantizedStreams
from stepscore_export.weights.layout import (
    BlockMatrix,
    FloatMatrix,
    IntegerMatrix,
    Matrix,
    MergedMatrix,
    SeparateMatrix,
    pieces,
)

Streams = tuple[ir.Value, ...]
"""The activations [n, K] in each model of the unit: one value, or reference and policy."""

DEQUANTIZED_BITS = 8
"""Bits at which weights are dequantized before the GEMM on the CPU, instead of using MatMulNBits.

MatMulNBits unpacks 8-bit codes on a single thread; with 4-bit codes it is as fast as a float GEMM.
"""
EXACT_ACTIVATIONS = 1  # MatMulNBits accuracy_level: 1 computes in fp32; 4 would quantize activations to int8


class LinearInputs:
    """The activations that one or more matrices read; they are quantized once for all of these matrices."""

    def __init__(self, g: GraphBuilder, streams: Streams, unit: ir.Value | None = None) -> None:
        """Take the activations, as multiples of `unit` [n, 1] if there is one: of integer matrices only."""
        self._g = g
        self._streams = streams
        self._unit = unit

    def matmul(self, matrix: Matrix) -> Streams:
        """Return x @ W^T [n, N] of each stream, x its activations [n, K] and W the matrix [N, K]."""
        match matrix:
            case FloatMatrix():
                return self._times_floats(self._g.weight(matrix.values))
            case BlockMatrix():
                return self._blocks(matrix)
            case SeparateMatrix():
                return self._separate(matrix)
            case MergedMatrix():
                return self._merged(matrix)
            case IntegerMatrix():
                return self._integer(matrix)
            case _:
                raise TypeError(f"{type(matrix).__name__} is decoded before a graph reads it")

    def matmul_in_units(self, matrix: Matrix) -> tuple[Streams, ir.Value | None]:
        """Return x @ W^T as multiples of a unit per token, and the unit [n, 1]; None stands for 1."""
        if not isinstance(matrix, IntegerMatrix):
            return self.matmul(matrix), None
        inputs = self._quantized
        base, *moves = inputs.products(matrix)
        return (base, self._moved(base, moves, inputs.relative_scales)), inputs.scales[0]

    def _blocks(self, matrix: BlockMatrix) -> Streams:
        g = self._g
        if matrix.bits == DEQUANTIZED_BITS:
            return _joined(g, [self._times_floats(_dequantized(g, piece)) for piece in pieces(matrix)])
        return tuple(_block_product(g, rows, matrix) for rows in self._streams)

    def _times_floats(self, weight: ir.Value) -> Streams:
        return tuple(_gemm(self._g, rows, weight) for rows in self._streams)

    def _separate(self, matrix: SeparateMatrix) -> Streams:
        reference, policy = (_block_product(self._g, rows, matrix.base) for rows in self._streams)
        difference = _block_product(self._g, self._streams[1], matrix.difference)
        return reference, self._g.op("Add", policy, difference)

    def _merged(self, matrix: MergedMatrix) -> Streams:
        return _joined(self._g, [self._merged_piece(piece) for piece in pieces(matrix)])

    def _merged_piece(self, matrix: MergedMatrix) -> Streams:
        base, difference = (_dequantized(self._g, part) for part in (matrix.base, matrix.difference))
        reference, policy = self._streams
        return (
            _gemm(self._g, reference, base),
            _gemm(self._g, policy, self._g.op("Add", base, difference)),
        )

    def _integer(self, matrix: IntegerMatrix) -> Streams:
        product, *moves = self._quantized.products(matrix)
        of_base, *of_moves = self._quantized.scales
        base = self._g.op("Mul", product, of_base)
        return base, self._moved(base, moves, of_moves)

    def _moved(self, base: ir.Value, moves: Sequence[ir.Value], scales: Sequence[ir.Value]) -> ir.Value:
        # base + the sum of moves times their scales
        g = self._g
        return g.op(
            "Add", base, g.op("Add", *(g.op("Mul", *each) for each in zip(moves, scales, strict=True)))
        )

    @cached_property
    def _quantized(self) -> QuantizedStreams:
        return QuantizedStreams(self._g, self._streams, self._unit)


def _joined(g: GraphBuilder, columns: Sequence[Streams]) -> Streams:
    # streams [n, N_i] of the tiles, concatenated -> [n, N]
    if len(columns) == 1:
        return columns[0]
    return tuple(g.op("Concat", *of_stream, axis=-1) for of_stream in zip(*columns, strict=True))


def _gemm(g: GraphBuilder, rows: ir.Value, weight: ir.Value) -> ir.Value:
    return g.op("Gemm", rows, weight, transB=1)


def _block_product(g: GraphBuilder, rows: ir.Value, matrix: BlockMatrix) -> ir.Value:
    return g.op(
        "MatMulNBits",
        rows,
        g.weight(matrix.codes),
        g.weight(matrix.scales),
        *(() if matrix.zeros is None else (g.weight(matrix.zeros),)),
        domain=MICROSOFT,
        K=matrix.columns,
        N=matrix.codes.shape[0],
        bits=matrix.bits,
        block_size=matrix.block_size,
        accuracy_level=EXACT_ACTIVATIONS,
    )


def _dequantized(g: GraphBuilder, matrix: BlockMatrix) -> ir.Value:
    # -> [N, K]; before the Slice [N, K'], K' = K rounded up to a multiple of the block size
    values = _gathered(g, matrix)
    if matrix.scales.shape[1] * matrix.block_size == matrix.columns:
        return values
    return g.op(
        "Slice",
        values,
        g.constant("first", 0),
        g.constant(f"columns_{matrix.columns}", matrix.columns),
        g.constant("second", 1),
    )


def _gathered(g: GraphBuilder, matrix: BlockMatrix) -> ir.Value:
    """Dequantize by gathering all rows: on the CPU this is multi-threaded, DequantizeLinear is not."""
    rows, blocks, in_block = matrix.codes.shape
    codes = g.weight(replace(matrix.codes, shape=(rows, blocks * in_block)))
    first, one = g.scalar("row_0", 0), g.scalar("one_row", 1)
    return g.op(
        "GatherBlockQuantized",
        codes,
        g.op("Range", first, g.scalar(f"rows_{rows}", rows), one),
        g.weight(matrix.scales),
        *(() if matrix.zeros is None else (g.weight(matrix.zeros),)),
        domain=MICROSOFT,
        gather_axis=0,
        quantize_axis=1,
        block_size=matrix.block_size,
        bits=matrix.bits,
    )
