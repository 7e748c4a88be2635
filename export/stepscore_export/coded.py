"""A matrix of both models at once: the reference rounded, and the difference of the two rounded on its own.

What the base rounds wrongly is the same in both models and cancels to first order in the difference of their
log-probs; the difference is small, so that its own rounding errors are smaller still. Two identical matrices
have a difference of exactly zero.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from stepscore.choices import Activations
from stepscore.errors import CheckpointCorrupt
from stepscore_export.layout import (
    BlockMatrix,
    ChannelMatrix,
    CodedMatrix,
    IntegerMatrix,
    MergedMatrix,
    SeparateMatrix,
    SignedMatrix,
)
from stepscore_export.options import ExportOptions
from stepscore_export.quantize import Quantized, quantize, quantize_channels, signed
from stepscore_export.weights import TensorRef, TensorSink, numpy_dtype


@dataclass(frozen=True, slots=True)
class CodedBlocks:
    """Row blocks of a matrix [rows, columns] in both models: (reference, policy), float32."""

    rows: int
    columns: int
    blocks: Iterable[tuple[NDArray[np.float32], NDArray[np.float32]]]


class Role(enum.Enum):
    """What a matrix is for, which says how finely it is coded."""

    ATTENTION = enum.auto()
    """Moves the base's predictions most and holds an eighth of a 7B model: never under 8 bits."""
    EXPAND = enum.auto()
    """Into the MLP: gate and up."""
    CONTRACT = enum.auto()
    """Out of it: down, whose inputs have outliers."""
    HEAD = enum.auto()
    """At 4 bits it alone costs half the fidelity of the base, and its difference most of the rest."""

    @property
    def fine(self) -> bool:
        """Whether int8 activations of the reference are not enough."""
        return self in {Role.ATTENTION, Role.CONTRACT}

    def bits(self, options: ExportOptions) -> tuple[int, int]:
        """Bits of base and difference."""
        base = 8 if self in {Role.ATTENTION, Role.HEAD} else options.bits or 8
        return base, max(8 if self is Role.HEAD else 0, options.difference_bits)


def store_coded(
    file: TensorSink, name: str, blocks: CodedBlocks, options: ExportOptions, role: Role
) -> CodedMatrix:
    """Append base and difference."""
    if options.activations is Activations.INT8:
        return _store_channels(file, name, blocks, role)
    bits = role.bits(options)
    parts = tuple(
        _Part(f"{name}.{part}", blocks, options, each) for part, each in zip(_PARTS, bits, strict=True)
    )
    base, difference = parts

    def base_codes() -> Iterator[NDArray[np.uint8]]:
        for reference, policy in blocks.blocks:
            yield base.add(reference)
            difference.codes.append(difference.add(policy - reference))

    stored = [base.store(file, base_codes()), difference.store(file, difference.codes)]
    if options.merged:
        return MergedMatrix(*(part.signed_matrix(*refs) for part, refs in zip(parts, stored, strict=True)))
    return SeparateMatrix(*(part.block_matrix(*refs) for part, refs in zip(parts, stored, strict=True)))


_PARTS = ("base", "difference")


@dataclass(slots=True)
class _Part:
    """Base or difference on its way to the file."""

    name: str
    blocks: CodedBlocks
    options: ExportOptions
    bits: int
    codes: list[NDArray[np.uint8]] = field(default_factory=list)
    scales: list[NDArray[np.floating]] = field(default_factory=list)

    def add(self, weight: NDArray[np.float32]) -> NDArray[np.uint8]:
        """Quantise a row block, keep its scales and return its codes."""
        quantized = quantize(weight, self.bits, self.options.block_size, numpy_dtype(self.options.compute))
        self._check(weight, quantized)
        self.scales.append(quantized.scales)
        return signed(quantized.codes, self.bits) if self.options.merged else quantized.codes

    def store(self, file: TensorSink, codes: Iterable[NDArray[np.uint8]]) -> tuple[TensorRef, TensorRef]:
        rows, size = self.blocks.rows, self.options.block_size
        per_row = -(-self.blocks.columns // size)
        if self.options.merged:
            dtype = {8: ir.DataType.INT8, 4: ir.DataType.INT4}[self.bits]
            stored = file.append(f"{self.name}.codes", dtype, (rows, per_row * size), _viewed(codes, dtype))
        else:
            shape = (rows, per_row, size * self.bits // 8)
            stored = file.append(f"{self.name}.codes", ir.DataType.UINT8, shape, codes)
        scales = file.append(f"{self.name}.scales", self.options.compute, (rows, per_row), self.scales)
        return stored, scales

    def block_matrix(self, codes: TensorRef, scales: TensorRef) -> BlockMatrix:
        return BlockMatrix(codes, scales, self.bits, self.options.block_size, self.blocks.columns)

    def signed_matrix(self, codes: TensorRef, scales: TensorRef) -> SignedMatrix:
        return SignedMatrix(codes, scales, self.options.block_size, self.blocks.columns)

    def _check(self, weight: NDArray[np.float32], quantized: Quantized) -> None:
        if not np.isfinite(quantized.scales).all():
            raise CheckpointCorrupt(
                f"{self.name} holds {float(np.abs(weight).max()):.3g}, whose scale fp16 cannot hold",
                hint="export for the CPU",
            )


def _viewed(codes: Iterable[NDArray[np.uint8]], dtype: ir.DataType) -> Iterator[NDArray[Any]]:
    return (block.view(numpy_dtype(dtype)) for block in codes)


def _store_channels(file: TensorSink, name: str, blocks: CodedBlocks, role: Role) -> IntegerMatrix:
    """Append both parts, transposed, as the integer operator wants them: codes [K, N], scales [N]."""
    base, difference = (_Channels(f"{name}.{part}", blocks) for part in _PARTS)

    def base_codes() -> Iterator[NDArray[np.int8]]:
        for reference, policy in blocks.blocks:
            base.add(reference)
            difference.add(policy - reference)
        yield base.transposed()

    return IntegerMatrix(
        base.store(file, base_codes()),
        difference.store(file, (difference.transposed() for _ in (1,))),
        role.fine,
    )


@dataclass(slots=True)
class _Channels:
    """Base or difference with one scale a row; all of its codes are held until it is complete."""

    name: str
    blocks: CodedBlocks
    codes: list[NDArray[np.int8]] = field(default_factory=list)
    scales: list[NDArray[np.float32]] = field(default_factory=list)

    def add(self, weight: NDArray[np.float32]) -> None:
        quantized = quantize_channels(weight)
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
