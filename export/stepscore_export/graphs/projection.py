"""Finish the projected queries, keys and values before their rotary embedding: biases, norms per head."""

from __future__ import annotations

import onnx_ir as ir

from stepscore_export.graphs.builder import GraphBuilder
from stepscore_export.graphs.linear import Streams
from stepscore_export.weights.layout import LayerWeights
from stepscore_export.weights.weight_file import TensorRef


def biased_and_normed(g: GraphBuilder, layer: LayerWeights, projected: Streams) -> Streams:
    """Add the biases to q, k and v, and RMS-norm each head of q and k, of what the model has of both."""
    # projected [n, (Nq + 2 Nkv) D] -> [n, (Nq + 2 Nkv) D]
    if layer.qkv_bias is not None:
        pairs = zip(projected, layer.qkv_bias, strict=True)
        projected = tuple(g.op("Add", qkv, g.weight(bias)) for qkv, bias in pairs)
    if layer.qk_norms is None:
        return projected
    return tuple(
        _with_normed_heads(g, qkv, query_norm, key_norm, epsilon)
        for qkv, query_norm, key_norm, epsilon in zip(
            projected, layer.qk_norms.query, layer.qk_norms.key, g.shape.rms_norm_eps, strict=True
        )
    )


def _with_normed_heads(
    g: GraphBuilder, qkv: ir.Value, query_norm: TensorRef, key_norm: TensorRef, epsilon: float
) -> ir.Value:
    shape = g.shape
    queries, keys = shape.num_attention_heads, shape.num_key_value_heads
    query = _normed_heads(g, _heads(g, qkv, 0, queries), queries, query_norm, epsilon)
    key = _normed_heads(g, _heads(g, qkv, queries, queries + keys), keys, key_norm, epsilon)
    value = _heads(g, qkv, queries + keys, queries + 2 * keys)
    return g.op("Concat", query, key, value, axis=1)


def _heads(g: GraphBuilder, qkv: ir.Value, start: int, stop: int) -> ir.Value:
    # qkv [n, (Nq + 2 Nkv) D] -> [n, (stop - start) D]
    first, last = (g.constant(f"head_{index}", index * g.shape.head_dim) for index in (start, stop))
    return g.op("Slice", qkv, first, last, g.constant("columns_axis", 1))


def _normed_heads(g: GraphBuilder, rows: ir.Value, heads: int, scale: TensorRef, epsilon: float) -> ir.Value:
    # rows [n, heads D] -> [n, heads D]; a 0 in a shape keeps the axis
    width = g.shape.head_dim
    by_head = g.op("Reshape", rows, g.constant(f"by_head_{heads}", 0, heads, width))
    normed = g.op("SimplifiedLayerNormalization", by_head, g.weight(scale), axis=-1, epsilon=epsilon)
    return g.op("Reshape", normed, g.constant(f"as_row_{heads}", 0, heads * width))
