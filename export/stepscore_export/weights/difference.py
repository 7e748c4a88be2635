"""Store a matrix of both models with delta compression (difference coding).

The base is the quantized reference, the difference is policy - reference, quantized separately. The
quantization error of the base is common to both models and cancels to first order in the difference of their
log-probs. The difference is small, and so is its quantization error. The difference of two identical matrices
is exactly zero.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from stepscore.artifact.generic_graphs import base_block_size
from stepscore.errors import CheckpointCorrupt
from stepscore_export.options import ExportOptions
from stepscore_export.quantization.gptq import quantize_channels_with_feedback, quantize_with_feedback
from stepscore_export.quantization.rounding import (
    Floats,
    Quantized,
    QuantizedChannels,
    pack,
    quantize,
    quantize_channels,
    signed,
)
from stepscore_export.threads import in_order
from stepscore_export.weights.layout import (
    BlockMatrix,
    ChannelMatrix,
    CodedMatrix,
    IntegerMatrix,
    MergedMatrix,
    SeparateMatrix,
    SignedDifferenceMatrix,
    SignedMatrix,
)
from stepscore_export.weights.weight_file import TensorRef, TensorSink, numpy_dtype


@dataclass(frozen=True, slots=True)
class CodedBlocks:
    """Row blocks of a matrix [rows, columns] in both models: (reference, policy), float32.

    With `error_propagation` (gptq.py, from the activations of the reference) the base is quantized with error
    feedback, and the difference where it has fewer than 8 bits; with None both are rounded to nearest.
    """

    rows: int
    columns: int
    blocks: Iterable[tuple[Floats, Floats]]
    error_propagation: Floats | None = None


class Role(enum.Enum):
    """The use of a matrix, which determines its precision."""

    ATTENTION = enum.auto()
    """Affects the predictions of the base most and holds an eighth of a 7B model: an 8-bit base."""
    EXPAND = enum.auto()
    """Input of the MLP: gate and up."""
    CONTRACT = enum.auto()
    """Output of the MLP: down, whose inputs have outliers."""
    HEAD = enum.auto()
    """8 bits: at 4 bits the head causes half of the error of all bases, its difference most of the rest."""

    @property
    def high_precision_activations(self) -> bool:
        """Whether W8A8 takes the reference's activations at 16 instead of 8 bits (graphs/linear.py)."""
        return self in {Role.ATTENTION, Role.CONTRACT}

    def bits(self, options: ExportOptions) -> tuple[int, int]:
        """Return the bits of base and difference."""
        base = 8 if self in {Role.ATTENTION, Role.HEAD} else options.bits or 8
        return base, max(8 if self is Role.HEAD else 0, options.difference_bits)


def store_coded(
    file: TensorSink, name: str, blocks: CodedBlocks, options: ExportOptions, role: Role
) -> CodedMatrix:
    """Append base and difference to the file and return where they are."""
    if options.has_int8_activations:
        return _store_channels(file, name, blocks, role)
    base_bits, difference_bits = role.bits(options)
    size = options.block_size
    # The base causes most of the error: it gets shorter blocks, and zero points at 4 bits.
    base_size = base_block_size(size)
    feedback = blocks.error_propagation
    base = _Part(f"{name}.base", blocks, options, base_bits, base_size, feedback, asymmetric=base_bits == 4)
    if difference_bits == 8:
        feedback = None  # the error of nearest rounding does not show
    difference = _Part(f"{name}.difference", blocks, options, difference_bits, size, feedback)

    def quantized(block: tuple[Floats, Floats]) -> tuple[Quantized, Quantized]:
        reference, policy = block
        return base.quantized(reference), difference.quantized(policy - reference)

    def base_codes() -> Iterator[NDArray[np.uint8]]:
        for of_base, of_difference in in_order(quantized, blocks.blocks):
            yield base.add(of_base)
            difference.codes.append(difference.add(of_difference))

    # The order matters: codes of the base are streamed to the file while those of the difference are held.
    where = base.store(file, base_codes()), difference.store(file, difference.codes)
    if options.signed_codes:
        return SignedDifferenceMatrix(base.signed_matrix(where[0]), difference.signed_matrix(where[1]))
    kind = MergedMatrix if options.merged else SeparateMatrix
    return kind(base.block_matrix(where[0]), difference.block_matrix(where[1]))


@dataclass(slots=True)
class _Part:
    """Quantize and store one part, base or difference, with one scale per block."""

    name: str
    blocks: CodedBlocks
    options: ExportOptions
    bits: int
    block_size: int
    error_propagation: Floats | None
    asymmetric: bool = False
    codes: list[NDArray[np.uint8]] = field(default_factory=list)
    scales: list[NDArray[np.floating]] = field(default_factory=list)
    zeros: list[NDArray[np.uint8]] = field(default_factory=list)

    def quantized(self, weight: Floats) -> Quantized:
        """Quantize a row block."""
        form = (self.bits, self.block_size, numpy_dtype(self.options.compute))
        if self.error_propagation is None:
            quantized = quantize(weight, *form, asymmetric=self.asymmetric)
        else:
            quantized = quantize_with_feedback(
                weight, self.error_propagation, *form, asymmetric=self.asymmetric
            )
        self._check(weight, quantized)
        return quantized

    def add(self, quantized: Quantized) -> NDArray[np.uint8]:
        """Hold the scales and zero points of the next row block and return its codes."""
        self.scales.append(quantized.scales)
        if quantized.zeros is not None:
            self.zeros.append(quantized.zeros)
        return self._signed(quantized.codes)

    def store(self, file: TensorSink, codes: Iterable[NDArray[np.uint8]]) -> _Stored:
        rows, size = self.blocks.rows, self.block_size
        per_row = -(-self.blocks.columns // size)
        is_signed = self.options.signed_codes
        dtype = SIGNED_TYPES[self.bits] if is_signed else ir.DataType.UINT8
        shape = (rows, per_row * size) if is_signed else (rows, per_row, size * self.bits // 8)
        viewed = (block.view(numpy_dtype(dtype)) for block in codes)
        return _Stored(
            codes=file.append(f"{self.name}.codes", dtype, shape, viewed),
            scales=file.append(f"{self.name}.scales", self.options.compute, (rows, per_row), self.scales),
            zeros=self._store_zeros(file, per_row) if self.asymmetric else None,
        )

    def block_matrix(self, stored: _Stored) -> BlockMatrix:
        columns = self.blocks.columns
        return BlockMatrix(stored.codes, stored.scales, self.bits, self.block_size, columns, stored.zeros)

    def signed_matrix(self, stored: _Stored) -> SignedMatrix:
        return SignedMatrix(stored.codes, stored.scales, self.block_size, self.blocks.columns, stored.zeros)

    def _store_zeros(self, file: TensorSink, per_row: int) -> TensorRef:
        """Store the zero points.

        DequantizeLinear reads them packed across rows; MatMulNBits and GatherBlockQuantized read rows that
        start at a byte.
        """
        rows, name = self.blocks.rows, f"{self.name}.zeros"
        if self.options.signed_codes:
            packed = (self._packed_zeros(np.concatenate(self.zeros).reshape(1, -1)) for _ in (1,))
            return file.append(name, SIGNED_TYPES[self.bits], (rows, per_row), packed)
        shape = (rows, -(-per_row * self.bits // 8))
        return file.append(name, ir.DataType.UINT8, shape, (self._packed_zeros(each) for each in self.zeros))

    def _packed_zeros(self, zeros: NDArray[np.uint8]) -> NDArray[np.uint8]:
        to_whole_bytes = -zeros.shape[1] % (8 // self.bits)
        return self._signed(pack(np.pad(zeros, ((0, 0), (0, to_whole_bytes))), self.bits))

    def _signed(self, codes: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return signed(codes, self.bits) if self.options.signed_codes else codes

    def _check(self, weight: Floats, quantized: Quantized) -> None:
        if not np.isfinite(quantized.scales).all():
            raise CheckpointCorrupt(
                f"{self.name} holds {float(np.abs(weight).max()):.3g}, whose scale overflows fp16",
                hint="export for the CPU",
            )


@dataclass(frozen=True, slots=True)
class _Stored:
    """Where the tensors of a part are in the weight file."""

    codes: TensorRef
    scales: TensorRef
    zeros: TensorRef | None


SIGNED_TYPES = {8: ir.DataType.INT8, 4: ir.DataType.INT4}
"""Types of the codes of a CUDA pair, by bits."""


def _store_channels(file: TensorSink, name: str, blocks: CodedBlocks, role: Role) -> IntegerMatrix:
    """Append both parts in the layout of MatMulIntegerToFloat, transposed: codes [K, N], scales [N]."""
    base, difference = (_Channels(f"{name}.{part}", blocks) for part in ("base", "difference"))
    feedback = blocks.error_propagation

    def quantized(block: tuple[Floats, Floats]) -> tuple[QuantizedChannels, QuantizedChannels]:
        reference, policy = block
        of_base = (
            quantize_channels(reference)
            if feedback is None
            else quantize_channels_with_feedback(reference, feedback)
        )
        return of_base, quantize_channels(policy - reference)

    def base_codes() -> Iterator[NDArray[np.int8]]:
        for of_base, of_difference in in_order(quantized, blocks.blocks):
            base.add(of_base)
            difference.add(of_difference)
        yield base.transposed()

    return IntegerMatrix(
        base.store(file, base_codes()),
        difference.store(file, (difference.transposed() for _ in (1,))),
        role.high_precision_activations,
    )


@dataclass(slots=True)
class _Channels:
    """Store one part with one scale per row; transposing requires holding all of its codes."""

    name: str
    blocks: CodedBlocks
    codes: list[NDArray[np.int8]] = field(default_factory=list)
    scales: list[NDArray[np.float32]] = field(default_factory=list)

    def add(self, quantized: QuantizedChannels) -> None:
        self.codes.append(quantized.codes)
        self.scales.append(quantized.scales)

    def transposed(self) -> NDArray[np.int8]:
        return np.ascontiguousarray(np.concatenate(self.codes).T)

    def store(self, file: TensorSink, codes: Iterable[NDArray[np.int8]]) -> ChannelMatrix:
        rows, columns = self.blocks.rows, self.blocks.columns
        return ChannelMatrix(
            file.append(f"{self.name}.codes", ir.DataType.INT8, (columns, rows), codes),
            file.append(f"{self.name}.scales", ir.DataType.FLOAT, (rows,), self.scales),
        )
