"""Where weights are in a weight file, and what the graphs need to know of the shape of a model.

A unit computes one model, or both at once from a coded pair: then every stream (reference first, policy
second) has norms, biases and an embedding of its own, and the matrices serve both.
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
    """A matrix [N, K] stored as it is (any floating type)."""

    values: TensorRef

    def part(self, start: int, stop: int) -> FloatMatrix:
        """Name rows [start:stop] of the same bytes."""
        return FloatMatrix(self.values.part(start, stop))


@dataclass(frozen=True, slots=True)
class BlockMatrix:
    """A matrix [N, K] as codes and scales (see quantize), which MatMulNBits and GatherBlockQuantized read."""

    codes: TensorRef
    scales: TensorRef
    bits: int
    block_size: int
    columns: int
    zeros: TensorRef | None = None

    def part(self, start: int, stop: int) -> BlockMatrix:
        """Name rows [start:stop] of the same bytes."""
        return _rows(self, start, stop)


@dataclass(frozen=True, slots=True)
class SignedMatrix:
    """The same with signed codes [N, ceil(K / block_size) * block_size]; CUDA's DequantizeLinear reads it."""

    codes: TensorRef
    scales: TensorRef
    block_size: int
    columns: int
    zeros: TensorRef | None = None

    def part(self, start: int, stop: int) -> SignedMatrix:
        """Name rows [start:stop] of the same bytes."""
        return _rows(self, start, stop)


_InBlocks = TypeVar("_InBlocks", BlockMatrix, SignedMatrix)


def _rows(matrix: _InBlocks, start: int, stop: int) -> _InBlocks:
    return replace(
        matrix,
        codes=matrix.codes.part(start, stop),
        scales=matrix.scales.part(start, stop),
        zeros=None if matrix.zeros is None else matrix.zeros.part(start, stop),
    )


@dataclass(frozen=True, slots=True)
class ChannelMatrix:
    """A matrix [N, K] as signed 8-bit codes, transposed to [K, N], and one scale a row [N]."""

    codes: TensorRef
    scales: TensorRef


@dataclass(frozen=True, slots=True)
class SeparateMatrix:
    """Two streams' matrix: both are multiplied with the base, the policy's with the difference as well."""

    base: BlockMatrix
    difference: BlockMatrix


@dataclass(frozen=True, slots=True)
class MergedMatrix:
    """Two streams' matrix: the reference's is the base, the policy's the sum of base and difference."""

    base: BlockMatrix | SignedMatrix
    difference: BlockMatrix | SignedMatrix

    def part(self, start: int, stop: int) -> MergedMatrix:
        """Name rows [start:stop] of the same bytes."""
        return MergedMatrix(self.base.part(start, stop), self.difference.part(start, stop))


@dataclass(frozen=True, slots=True)
class IntegerMatrix:
    """Two streams' matrix for rows that are rounded to 8 bits, the policy's as a difference.

    With `high_precision_activations`, rows of the reference are rounded to 16.
    """

    base: ChannelMatrix
    difference: ChannelMatrix
    high_precision_activations: bool


_Cut = TypeVar("_Cut", BlockMatrix, MergedMatrix)


def pieces(matrix: _Cut) -> Iterator[_Cut]:
    """Cut a matrix into row ranges that are small enough to be floats, over the same bytes."""
    part = matrix.base if isinstance(matrix, MergedMatrix) else matrix
    rows, step = part.codes.shape[0], piece_rows(part.columns)
    if rows <= step:
        yield matrix
        return
    for start in range(0, rows, step):
        yield matrix.part(start, min(start + step, rows))


CodedMatrix = SeparateMatrix | MergedMatrix | IntegerMatrix
Matrix = FloatMatrix | BlockMatrix | CodedMatrix
Table = FloatMatrix | BlockMatrix
"""What rows are looked up in."""
Vectors = tuple[TensorRef, ...]
"""A norm, a bias or a rotary table: one a stream."""


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """One decoder layer; `qkv` is the query, key and value rows in one matrix."""

    input_norm: Vectors
    qkv: Matrix
    qkv_bias: Vectors
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
    """Columns of the vocabulary from `start` on: a matrix [columns, H]."""

    start: int
    columns: int
    matrix: Matrix


@dataclass(frozen=True, slots=True)
class UnitWeights:
    """A whole unit in one weight file."""

    embedding: tuple[Table, ...]
    layers: tuple[LayerWeights, ...]
    norm: Vectors
    head: tuple[HeadTile, ...]
    rotary: RotaryWeights

    def extents(self) -> dict[str, Extent]:
        """Return which bytes of the weight file each graph reads, norms and rotary tables aside."""
        layers = {layer_file(index): extent_of(layer) for index, layer in enumerate(self.layers)}
        heads = {name: extent_of(part) for name, part in head_parts(self.head).items()}
        parts = {EMBED: self.embedding, BODY: self.layers, HEAD: self.head}
        return {name: extent_of(part) for name, part in parts.items()} | layers | heads


def tensors(part: object) -> Iterator[TensorRef]:
    """Give every tensor of a part of a unit."""
    if isinstance(part, TensorRef):
        yield part
    elif isinstance(part, tuple):
        for each in part:
            yield from tensors(each)
    elif is_dataclass(part):
        for field in fields(part):
            yield from tensors(getattr(part, field.name))


def head_parts(head: Sequence[HeadTile]) -> dict[str, tuple[HeadTile, ...]]:
    """Return the tiles of each part of the head, by the name of its graph."""
    end = head[-1].start + head[-1].columns
    return {
        name: tuple(tile for tile in head if tile.start // HEAD_PART_COLUMNS == index)
        for index, name in enumerate(head_files(end))
    }


def extent_of(part: object) -> Extent:
    """Return the bytes of the weight file from the first tensor of a part to the last."""
    refs = list(tensors(part))
    start = min(ref.offset for ref in refs)
    return Extent(start, max(ref.offset + ref.num_bytes for ref in refs) - start)
