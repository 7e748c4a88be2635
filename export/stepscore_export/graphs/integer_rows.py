"""Quantize activations to 8 bits inside the graph (W8A8): formulas in linear.py."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import onnx_ir as ir

from stepscore_export.graphs.builder import FLOAT, MICROSOFT, GraphBuilder
from stepscore_export.weights.layout import ChannelMatrix, IntegerMatrix

UINT8_ZERO = 128

SMALLEST = 1e-30  # lower bound of max |x|: avoids 0 / 0 for a token whose activations are all zero


@dataclass(frozen=True, slots=True)
class QuantizedActivations:
    """Activations [n, K] = (codes - 128) * scale * factor.

    `codes` is uint8 [n, K], `scale` has one factor per token, `factor` is a constant.
    """

    g: GraphBuilder
    codes: ir.Value
    scale: TokenScale
    factor: float

    @classmethod
    def of(cls, g: GraphBuilder, rows: ir.Value, scale: TokenScale) -> QuantizedActivations:
        """Quantize to the codes 1 .. 255: code = round(x / scale) + 128, where scale >= max |x| / 127."""
        codes = g.op("QuantizeLinear", rows, scale.flat, scale.zero_points, axis=0)
        return cls(g, codes, scale, 1.0)

    def rest(self, rows: ir.Value) -> QuantizedActivations:
        """Quantize the quantization error of these activations, rows - dequantize(codes).

        The error is at most scale / 2, so that scale / 254 covers it with the codes 1 .. 255. Together both
        terms represent the activations with about 16 bits.
        """
        g, scale = self.g, self.scale
        known = g.op("DequantizeLinear", self.codes, scale.flat, scale.zero_points, axis=0)
        finer = g.op("Mul", scale.flat, g.constant("one_254th", 1 / 254, dtype=FLOAT))
        codes = g.op("QuantizeLinear", g.op("Sub", rows, known), finer, scale.zero_points, axis=0)
        return QuantizedActivations(g, codes, scale, 1 / 254)

    def product(self, matrix: ChannelMatrix) -> ir.Value:
        """Return factor * (codes - 128) @ matrix, [n, N], without the per-token scales."""
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


@dataclass(frozen=True)
class TokenScale:
    """One scale per token, float32: `column` [n, 1] for a product, `flat` [n] for its activations."""

    g: GraphBuilder
    column: ir.Value

    @classmethod
    def of(cls, g: GraphBuilder, rows: ir.Value) -> TokenScale:
        """Return max |x| / 127 of each token's activations x."""
        highest, lowest = (
            g.op(reduction, rows, g.constant("last", -1), keepdims=1)
            for reduction in ("ReduceMax", "ReduceMin")
        )
        largest = g.op("Max", highest, g.op("Neg", lowest), g.constant("smallest", SMALLEST, dtype=FLOAT))
        return cls(g, g.op("Mul", largest, g.constant("one_127th", 1 / 127, dtype=FLOAT)))

    @cached_property
    def flat(self) -> ir.Value:
        """Return the scales as QuantizeLinear reads them."""
        return self.g.op("Squeeze", self.column, self.g.constant("last", -1))

    @cached_property
    def zero_points(self) -> ir.Value:
        """Return the code of 0 for every token, uint8 [n]."""
        zero = self.g.scalar("zero_code", UINT8_ZERO, ir.DataType.UINT8)
        return self.g.op("Expand", zero, self.g.op("Shape", self.flat))

    def plus(self, other: TokenScale) -> TokenScale:
        """Return a scale that covers the sums of activations that the two scales cover."""
        return TokenScale(self.g, self.g.op("Add", self.column, other.column))


class QuantizedStreams:
    """Activations [n, K] of reference and policy and their difference, quantized for integer matrices.

    They are multiples of `unit` [n, 1], if there is one. The scale of the policy is a bound, s_r + s_d: its
    codes meet the difference of the weights only, and the reductions over its activations are saved. The
    reference needs its own scale, at which its largest entry is exact: a massive activation is most of a sum.
    """

    def __init__(self, g: GraphBuilder, streams: tuple[ir.Value, ...], unit: ir.Value | None) -> None:
        self._g = g
        self._unit = unit
        self._rows, policy = streams
        difference = g.op("Sub", policy, self._rows)
        of_reference, of_difference = (TokenScale.of(g, rows) for rows in (self._rows, difference))
        self._reference = QuantizedActivations.of(g, self._rows, of_reference)
        self._policy = QuantizedActivations.of(g, policy, of_reference.plus(of_difference))
        self._difference = QuantizedActivations.of(g, difference, of_difference)

    def products(self, matrix: IntegerMatrix) -> tuple[ir.Value, ir.Value, ir.Value]:
        """Return B c_r, B c_d and D c_p, each [n, N], without the scales of tokens."""
        base = self._reference.product(matrix.base)
        if matrix.high_precision_activations:
            base = self._g.op("Add", base, self._rest.product(matrix.base))
        return base, self._difference.product(matrix.base), self._policy.product(matrix.difference)

    @cached_property
    def _rest(self) -> QuantizedActivations:
        return self._reference.rest(self._rows)

    @cached_property
    def scales(self) -> tuple[ir.Value, ir.Value, ir.Value]:
        """Return the scales [n, 1] of the three products."""
        reference, difference, policy = (
            column if self._unit is None else self._g.op("Mul", column, self._unit)
            for column in self._columns
        )
        return reference, difference, policy

    @cached_property
    def relative_scales(self) -> tuple[ir.Value, ir.Value]:
        """Return the scales of the last two products as multiples of that of the first, [n, 1]."""
        reference, difference, policy = self._columns
        return self._g.op("Div", difference, reference), self._g.op("Div", policy, reference)

    @property
    def _columns(self) -> tuple[ir.Value, ir.Value, ir.Value]:
        reference, difference, policy = (
            each.scale.column for each in (self._reference, self._difference, self._policy)
        )
        return reference, difference, policy
