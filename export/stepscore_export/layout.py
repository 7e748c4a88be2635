"""Where weights are in a weight file, and what the graphs need to know of the shape of a model.

A unit computes one model, or both at once from a coded pair: then every stream (reference first, policy
second) has norms, biases and an embedding of its own, and the matrices serve both.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import onnx_ir as ir

from stepscore.artifact import ModelName
from stepscore_export.weights import TensorRef


@dataclass(frozen=True, slots=True)
class FloatMatrix:
    """A matrix [N, K] stored as it is (any floating type)."""

    values: TensorRef

    def part(self, start: int, stop: int) -> FloatMatrix:
        """Name rows [start:stop] of the same bytes."""
        return FloatMatrix(self.values.part(start, stop))


@dataclass(frozen=True, slots=True)
class BlockMatrix:
    """A matrix [N, K] stored as codes and scales (see quantize): what MatMulNBits reads."""

    codes: TensorRef
    scales: TensorRef
    bits: int
    block_size: int
    columns: int
    zeros: TensorRef | None = None

    def part(self, start: int, stop: int) -> BlockMatrix:
        """Name rows [start:stop] of the same bytes (of a matrix without zero points)."""
        return replace(self, codes=self.codes.part(start, stop), scales=self.scales.part(start, stop))


@dataclass(frozen=True, slots=True)
class SignedMatrix:
    """The same with signed codes [N, ceil(K / block_size) * block_size]: what DequantizeLinear reads."""

    codes: TensorRef
    scales: TensorRef
    block_size: int
    columns: int
    zeros: TensorRef | None = None


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

    base: SignedMatrix
    difference: SignedMatrix


@dataclass(frozen=True, slots=True)
class IntegerMatrix:
    """Two streams' matrix for rows that are rounded to 8 bits, the policy's as a difference.

    Where it is `fine`, rows of the reference are rounded to 16.
    """

    base: ChannelMatrix
    difference: ChannelMatrix
    fine: bool


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


@dataclass(frozen=True, slots=True)
class Shape:
    """What the graphs need to know beside the tensors' own shapes."""

    models: tuple[ModelName, ...]
    """Whose log-probs the unit gives: one stream each."""
    rms_norm_eps: tuple[float, ...]
    hidden_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    compute: ir.DataType
    fused_silu: bool
    """QuickGelu is one kernel for fp32 on the CPU; Sigmoid * Mul works everywhere."""

    def named(self, name: str) -> tuple[str, ...]:
        """Return the name of a graph's input or output for every stream: bare where there is but one."""
        return (name,) if len(self.models) == 1 else tuple(f"{name}_{model}" for model in self.models)
