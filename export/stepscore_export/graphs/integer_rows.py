"""Quantize activations to 8 bits inside the graph (W8A8)."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from stepscore_export.graphs.builder import FLOAT, MICROSOFT, GraphBuilder
from stepscore_export.weights.layout import ChannelMatrix

UINT8_ZERO = 128

SMALLEST = 1e-30  # lower bound of max |x|: avoids 0 / 0 for a token whose activations are all zero


@dataclass(frozen=True, slots=True)
class QuantizedActivations:
    """Activations [n, K] = (codes - 128) * scale * factor.

    `codes` is uint8 [n, K], `scale` is float32 [n, 1] (per token), `factor` is a constant.
    """

    g: GraphBuilder
    codes: ir.Value
    scale: ir.Value
    factor: float

    @classmethod
    def of(cls, g: GraphBuilder, rows: ir.Value) -> QuantizedActivations:
        """Quantize per token to the codes 1 .. 255: scale = max |x| / 127, code = round(x / scale) + 128."""
        highest, lowest = (
            g.op(reduction, rows, g.constant("last", -1), keepdims=1)
            for reduction in ("ReduceMax", "ReduceMin")
        )
        largest = g.op("Max", highest, g.op("Neg", lowest), g.constant("smallest", SMALLEST, dtype=FLOAT))
        scale = g.op("Mul", largest, g.constant("one_127th", 1 / 127, dtype=FLOAT))
        return cls(g, _quantized(g, rows, scale), scale, 1.0)

    def rest(self, rows: ir.Value) -> QuantizedActivations:
        """Quantize the quantization error of these activations, rows - dequantize(codes).

        The error is at most scale / 2, so that scale / 254 covers it with the codes 1 .. 255. Together both
        terms represent the activations with about 16 bits.
        """
        g = self.g
        flat, zeros = _per_row(g, self.scale)
        left = g.op("Sub", rows, g.op("DequantizeLinear", self.codes, flat, zeros, axis=0))
        scale = g.op("Mul", self.scale, g.constant("one_254th", 1 / 254, dtype=FLOAT))
        return QuantizedActivations(g, _quantized(g, left, scale), self.scale, 1 / 254)

    def matmul(self, matrix: ChannelMatrix) -> ir.Value:
        """Return the product of the activations with the matrix, [n, N]."""
        return self.scaled(self.product(matrix))

    def product(self, matrix: ChannelMatrix) -> ir.Value:
        """Return factor * (codes - 128) @ matrix, [n, N], without the per-token scales (see `scaled`)."""
        g = self.g
        zero = g.scalar("zero_code", UINT8_ZERO, ir.DataType.UINT8)
        unsigned = g.shape.unsigned
        return g.op(
            "MatMulIntegerToFloat",
            self.codes,
            g.unsigned_weight(matrix.codes) if unsigned else g.weight(matrix.codes),
            g.scalar("whole" if self.factor == 1 else "rest", self.factor, FLOAT),
            g.weight(matrix.scales),
            zero,
            *((zero,) if unsigned else ()),
            domain=MICROSOFT,
        )

    def scaled(self, product: ir.Value) -> ir.Value:
        """Multiply a product [n, N] by the per-token scales."""
        return self.g.op("Mul", product, self.scale)


def _quantized(g: GraphBuilder, rows: ir.Value, scale: ir.Value) -> ir.Value:
    flat, zeros = _per_row(g, scale)
    return g.op("QuantizeLinear", rows, flat, zeros, axis=0)


def _per_row(g: GraphBuilder, scale: ir.Value) -> tuple[ir.Value, ir.Value]:
    # scale [n, 1] -> scale [n], zero point [n]
    flat = g.op("Squeeze", scale, g.constant("last", -1))
    return flat, g.op("Expand", g.scalar("zero_code", UINT8_ZERO, ir.DataType.UINT8), g.op("Shape", flat))
