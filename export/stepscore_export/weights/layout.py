"""Describe where the weights of a unit are in its weight file, and in which form.

A unit (one weight file and its graphs) computes one model, or both models of a difference-coded pair. In a
unit of two, each stream (reference first, policy second) has separate norms, biases and embedding; the
matrices serve both streams.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import TypeVar

from stepscore.artifact.graph_contract import (
    BODY,
    EMBED,
    HEAD,
    HEAD_PART_COLUMNS,
    head_files,
    layer_file,
    piece_rows,
)
from stepscore.artifact.manifest import Extent
from stepscore_export.weights.weight_file import TensorRef


@dataclass(frozen=True, slots=True)
class FloatMatrix:
    """A matrix [N, K] stored in a floating-point type."""

    values: TensorRef

    def part(self, start: int, stop: int) -> FloatMatrix:
        """Return rows [start:stop]; they refer to the same bytes."""
        return FloatMatrix(self.values.part(start, stop))


@dataclass(frozen=True, slots=True)
class BlockMatrix:
    """A matrix [N, K] in the layout of `rounding.Quantized`, read by MatMulNBits and GatherBlockQuantized."""

    codes: TensorRef
    scales: TensorRef
    bits: int
    block_size: int
    columns: int
    zeros: TensorRef | None = None

    def part(self, start: int, stop: int) -> BlockMatrix:
        """Return rows [start:stop]; they refer to the same bytes."""
        return replace(
            self,
            codes=self.codes.part(start, stop),
            scales=self.scales.part(start, stop),
            zeros=None if self.zeros is None else self.zeros.part(start, stop),
        )


@dataclass(frozen=True, slots=True)
class SignedMatrix:
    """A matrix [N, K] as signed codes [N, K rounded up to whole blocks], which the decoders of CUDA read."""

    codes: TensorRef
    scales: TensorRef
    block_size: int
    columns: int
    zeros: TensorRef | None = None


@dataclass(frozen=True, slots=True)
class ChannelMatrix:
    """A matrix [N, K] as int8 codes, transposed to [K, N], and one scale per output channel [N]."""

    codes: TensorRef
    scales: TensorRef


@dataclass(frozen=True, slots=True)
class SeparateMatrix:
    """A matrix of two streams with separate GEMMs: x_r B^T, and x_p B^T + x_p D^T."""

    base: BlockMatrix
    difference: BlockMatrix


@dataclass(frozen=True, slots=True)
class MergedMatrix:
    """A matrix of two streams with merged GEMMs: x_r B^T and x_p (B + D)^T."""

    base: BlockMatrix
    difference: BlockMatrix

    def part(self, start: int, stop: int) -> MergedMatrix:
        """Return rows [start:stop]; they refer to the same bytes."""
        return MergedMatrix(self.base.part(start, stop), self.difference.part(start, stop))


@dataclass(frozen=True, slots=True)
class SignedDifferenceMatrix:
    """A matrix of two models for CUDA: the decoders give B, then B + D."""

    base: SignedMatrix
    difference: SignedMatrix


@dataclass(frozen=True, slots=True)
class IntegerMatrix:
    """A matrix of two streams for W8A8: integer GEMMs with activations that are quantized to 8 bits.

    The policy's activations enter as their difference from the reference's. With
    `high_precision_activations`, the reference's activations are represented with 16 bits
    (graphs/linear.py).
    """

    base: ChannelMatrix
    difference: ChannelMatrix
    high_precision_activations: bool


_Cut = TypeVar("_Cut", BlockMatrix, MergedMatrix)


def pieces(matrix: _Cut) -> Iterator[_Cut]:
    """Cut a matrix into row tiles that are small enough to be dequantized; they refer to the same bytes."""
    part = matrix.base if isinstance(matrix, MergedMatrix) else matrix
    rows, step = part.codes.shape[0], piece_rows(part.columns)
    if rows <= step:
        yield matrix
        return
    for start in range(0, rows, step):
        yield matrix.part(start, min(start + step, rows))


@dataclass(frozen=True, slots=True)
class LosslessMatrix:
    """A matrix [N, K] of two models: the reference in 16 bits, and the fields of a LosslessDifference.

    `unchanged` weights are the same in both models, bit for bit.
    """

    reference: TensorRef
    flags: TensorRef
    codes: TensorRef
    starts: TensorRef
    escapes: TensorRef
    unchanged: int


@dataclass(frozen=True, slots=True)
class TwoFloatMatrices:
    """A matrix [N, K] of two models, each in 16 bits: what is cheaper where most of the weights differ."""

    reference: TensorRef
    policy: TensorRef
    unchanged: int


CodedMatrix = (
    SeparateMatrix | MergedMatrix | IntegerMatrix | SignedDifferenceMatrix | LosslessMatrix | TwoFloatMatrices
)
Matrix = FloatMatrix | BlockMatrix | SignedMatrix | CodedMatrix
Table = FloatMatrix | BlockMatrix
"""An embedding table."""
Vectors = tuple[TensorRef, ...]
"""A norm, a bias or a rotary table: one tensor per stream."""


@dataclass(frozen=True, slots=True)
class QueryKeyNorms:
    """Scales [head_dim] of the norms over each head of queries and of keys."""

    query: Vectors
    key: Vectors


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """One decoder layer; `qkv` has the rows of the query, key and value projections in one matrix.

    Biases and the norms of query and key are None where the model has none.
    """

    input_norm: Vectors
    qkv: Matrix
    qkv_bias: Vectors | None
    qk_norms: QueryKeyNorms | None
    output: Matrix
    post_norm: Vectors
    gate: Matrix
    up: Matrix
    down: Matrix


@dataclass(frozen=True, slots=True)
class RotaryWeights:
    """Cosines and sines of the position embedding, [positions, head_dim / 2]."""

    cos: Vectors
    sin: Vectors


@dataclass(frozen=True, slots=True)
class HeadTile:
    """Tile of the head: the vocabulary from token `start` on, a matrix [columns, H]."""

    start: int
    columns: int
    matrix: Matrix


@dataclass(frozen=True, slots=True)
class UnitWeights:
    """All weights of a unit."""

    embedding: tuple[Table, ...]
    layers: tuple[LayerWeights, ...]
    norm: Vectors
    head: tuple[HeadTile, ...]
    rotary: RotaryWeights
    rotation: TensorRef | None = None
    """[H, H]: what looked-up rows are multiplied with."""

    def extents(self) -> dict[str, Extent]:
        """Return the byte range that each graph reads, without the final norm and the rotary tables."""
        layers = {layer_file(index): extent_of(layer) for index, layer in enumerate(self.layers)}
        heads = {name: extent_of(part) for name, part in head_parts(self.head).items()}
        parts = {EMBED: (self.embedding, self.rotation), BODY: self.layers, HEAD: self.head}
        return {name: extent_of(part) for name, part in parts.items()} | layers | heads


def tensors(part: object) -> Iterator[TensorRef]:
    """Yield all tensors of a part of a unit."""
    if isinstance(part, TensorRef):
        yield part
    elif isinstance(part, tuple):
        for each in part:
            yield from tensors(each)
    elif is_dataclass(part):
        for field in fields(part):
            yield from tensors(getattr(part, field.name))


def head_parts(head: Sequence[HeadTile]) -> dict[str, tuple[HeadTile, ...]]:
    """Return the tiles of each part of the head by the name of its graph."""
    end = head[-1].start + head[-1].columns
    return {
        name: tuple(tile for tile in head if tile.start // HEAD_PART_COLUMNS == index)
        for index, name in enumerate(head_files(end))
    }


def extent_of(part: object) -> Extent:
    """Return the byte range of the weight file from the first to the last tensor of a part."""
    refs = list(tensors(part))
    start = min(ref.offset for ref in refs)
    return Extent(start, max(ref.offset + ref.num_bytes for ref in refs) - start)
