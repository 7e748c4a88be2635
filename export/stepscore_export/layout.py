"""Where a model's weights are in its weight file, and what the graphs need to know of its shape."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from stepscore_export.weights import TensorRef


@dataclass(frozen=True, slots=True)
class FloatMatrix:
    """A matrix [N, K] stored as it is (any floating type)."""

    values: TensorRef


@dataclass(frozen=True, slots=True)
class BlockMatrix:
    """A matrix [N, K] stored as codes and scales (see quantize)."""

    codes: TensorRef
    scales: TensorRef
    bits: int
    block_size: int
    columns: int


Matrix = FloatMatrix | BlockMatrix


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """One decoder layer; `qkv` is the query, key and value rows in one matrix."""

    input_norm: TensorRef
    qkv: Matrix
    qkv_bias: TensorRef
    output: Matrix
    post_norm: TensorRef
    gate: Matrix
    up: Matrix
    down: Matrix


@dataclass(frozen=True, slots=True)
class ModelWeights:
    """A whole model in one weight file."""

    embedding: Matrix
    layers: tuple[LayerWeights, ...]
    norm: TensorRef
    head: Matrix
    cos: TensorRef
    sin: TensorRef


@dataclass(frozen=True, slots=True)
class Shape:
    """What the graphs need to know beside the tensors' own shapes."""

    hidden_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float
    compute: ir.DataType
    fused_silu: bool
    """QuickGelu is one kernel for fp32 on the CPU; Sigmoid * Mul works everywhere."""
