"""Qwen2 plus a log-prob head as ONNX graphs: one function a block, shapes in its first comment.

    embed   input_ids [n] -> rows [n, H]
    body    rows, indices -> hidden [m, H]              all layers
    layer   rows, indices -> next_rows [n, H]           one layer; the last one gives hidden [m, H]
    head    hidden, rows [c], targets [t, 2] -> logprobs [t]

n tokens of all sequences of a batch are rows, without padding. Only attention sees sequences: `pad_index`
[B, S] names the row of every position, `unpad_index` [n] a position (of B * S) of every row, so that a row
may stand in several sequences (a shared prefix). `score_index` [m] names the rows whose next token is
scored; the last layer drops the others before its MLP. The head gathers c of the m hidden rows, and
`targets` are pairs (index into those c, token id): [n, vocabulary] never exists, nor does [c, vocabulary].

Graphs hold no weights: every initializer names bytes of the unit's weights.bin, and the same bytes serve
the body and the layers. Operators are ONNX opset 21 and ONNX Runtime's com.microsoft domain.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import onnx_ir as ir

from stepscore_export.builder import FLOAT, INT32, INT64, MICROSOFT, GraphBuilder
from stepscore_export.layout import BlockMatrix, FloatMatrix, LayerWeights, Matrix, ModelWeights, Shape
from stepscore_export.weights import TensorRef

TILE = 8192  # columns of the vocabulary that have logits at the same time
EXACT_ACTIVATIONS = 1  # MatMulNBits accuracy_level: 1 computes in fp32, 4 would round activations to int8

_Stream = tuple[ir.Value, ir.Value | None]
"""The residual stream as rows [n, H] and what is still to be added to them: the next norm adds it."""


@dataclass(frozen=True, slots=True)
class _Indices:
    """The inputs that every layer shares."""

    pad_index: ir.Value
    unpad_index: ir.Value
    seqlens_k: ir.Value
    total_sequence_length: ir.Value
    score_index: ir.Value | None

    @classmethod
    def declare(cls, g: GraphBuilder, *, scored: bool) -> _Indices:
        return cls(
            pad_index=g.input("pad_index", INT64, "batch", "sequence"),
            unpad_index=g.input("unpad_index", INT64, "n"),
            seqlens_k=g.input("seqlens_k", INT32, "batch"),
            total_sequence_length=g.input("total_sequence_length", INT32),
            score_index=g.input("score_index", INT64, "m") if scored else None,
        )


def embed_graph(weights: ModelWeights, shape: Shape) -> ir.Model:
    """Look the tokens up in a table that stays in its file."""
    # input_ids [n] -> rows [n, H]
    g = GraphBuilder("embed", weights, shape)
    ids = g.input("input_ids", INT64, "n")
    table = weights.embedding
    if isinstance(table, FloatMatrix):
        rows = g.op("Gather", g.weight(table.values, as_stored=True), ids)
        rows = g.cast(rows, table.values.dtype, shape.compute)
    else:
        rows = _gather_blocks(g, table, ids)
    return g.finish((g.op("Identity", rows), "rows", shape.compute, ("n", shape.hidden_size)))


def body_graph(weights: ModelWeights, shape: Shape) -> ir.Model:
    """Chain all layers; between two layers the residual sum and the next norm are one operator."""
    # rows [n, H] -> hidden [m, H]
    g = GraphBuilder("body", weights, shape)
    rows = g.input("rows", shape.compute, "n", shape.hidden_size)
    indices = _Indices.declare(g, scored=True)
    delta: ir.Value | None = None
    for layer in weights.layers:
        rows, delta = _layer(g, layer, indices, (rows, delta))
    hidden, _ = _norm(g, weights.norm, (rows, delta))
    return g.finish((hidden, "hidden", shape.compute, ("m", shape.hidden_size)))


def layer_graph(weights: ModelWeights, shape: Shape, index: int) -> ir.Model:
    """Cut one layer out of the body: the residual sum is closed at its end."""
    # rows [n, H] -> next_rows [n, H]; the last layer: -> hidden [m, H]
    g = GraphBuilder(f"layer-{index:02d}", weights, shape)
    last = index == len(weights.layers) - 1
    rows = g.input("rows", shape.compute, "n", shape.hidden_size)
    indices = _Indices.declare(g, scored=last)
    rows, delta = _layer(g, weights.layers[index], indices, (rows, None))
    if last:
        hidden, _ = _norm(g, weights.norm, (rows, delta))
        return g.finish((hidden, "hidden", shape.compute, ("m", shape.hidden_size)))
    return g.finish((g.op("Add", rows, delta), "next_rows", shape.compute, ("n", shape.hidden_size)))


def head_graph(weights: ModelWeights, shape: Shape) -> ir.Model:
    """Turn a chunk of hidden rows into the log-probs of their target tokens, in fp32.

    The vocabulary is cut into tiles of TILE columns, and logits exist for one tile at a time: memory is
    c * TILE, not c * V. log-prob = the target's logit - log-sum-exp of the tiles' log-sum-exps, all from the
    same logits.
    """
    # hidden [m, H], rows [c], targets [t, 2] = (index into the chunk, token id) -> logprobs [t]
    g = GraphBuilder("head", weights, shape)
    hidden = g.input("hidden", shape.compute, "m", shape.hidden_size)
    rows = g.op("Gather", hidden, g.input("rows", INT64, "c"))
    targets = g.input("targets", INT64, "t", 2)
    parts = [_head_tile(g, rows, targets, start, matrix) for start, matrix in _tiles(weights.head)]
    tiles = g.op("Concat", *parts, axis=-1)  # [t, 2, tiles]
    logit, log_sums = (
        g.op("Gather", tiles, g.scalar(name, index), axis=1)
        for index, name in enumerate(("logit", "log_sum"))
    )
    total = g.op("Squeeze", _log_sum_exp(g, log_sums), g.constant("last", -1))
    logprobs = g.op("Sub", g.op("ReduceSum", logit, g.constant("last", -1), keepdims=0), total)
    return g.finish((logprobs, "logprobs", FLOAT, ("t",)))


def _head_tile(g: GraphBuilder, rows: ir.Value, targets: ir.Value, start: int, matrix: Matrix) -> ir.Value:
    # rows [c, H], targets [t, 2] -> [t, 2, 1]: the target's logit (0 if it is in another tile), log-sum-exp.
    # One result a tile, on purpose: it is complete before ONNX Runtime begins the next, and its logits freed.
    logits = g.cast(_linear(g, matrix, rows), g.compute, FLOAT)  # [c, columns]
    shifted = g.op("Sub", targets, g.constant(f"start_{start}", 0, start))
    inside = g.op("Min", g.op("Max", shifted, g.constant("zero", 0)), _last_index(g, matrix))
    here = g.op(
        "ReduceMin", g.op("Cast", g.op("Equal", shifted, inside), to=FLOAT.value), g.constant("last", -1)
    )
    logit = g.op("Mul", g.op("Unsqueeze", g.op("GatherND", logits, inside), g.constant("last", -1)), here)
    row = g.op("Mul", targets, g.constant("row_only", 1, 0))
    log_sum = g.op("Unsqueeze", g.op("GatherND", _log_sum_exp(g, logits), row), g.constant("last", -1))
    pair = g.op("Concat", logit, log_sum, axis=-1)  # [t, 2]
    return g.op("Unsqueeze", pair, g.constant("last", -1))


def _last_index(g: GraphBuilder, matrix: Matrix) -> ir.Value:
    # the largest (index into the chunk, column of the tile)
    columns = _rows_of(matrix)
    return g.constant(f"end_{columns}", 2**62, columns - 1)


def _tiles(head: Matrix) -> Iterator[tuple[int, Matrix]]:
    """Cut a head [V, H] into matrices of at most TILE rows; they name parts of the same bytes."""
    for start in range(0, _rows_of(head), TILE):
        stop = min(start + TILE, _rows_of(head))
        if stop - start == _rows_of(head):
            yield start, head
        elif isinstance(head, FloatMatrix):
            yield start, FloatMatrix(head.values.part(start, stop))
        else:
            yield (
                start,
                replace(head, codes=head.codes.part(start, stop), scales=head.scales.part(start, stop)),
            )


def _rows_of(matrix: Matrix) -> int:
    stored = matrix.values if isinstance(matrix, FloatMatrix) else matrix.codes
    return stored.shape[0]


def _log_sum_exp(g: GraphBuilder, x: ir.Value) -> ir.Value:
    # [c, k] -> [c, 1]. x[0] - log_softmax(x)[0]: ONNX Runtime's LogSoftmax is five times as fast as its
    # ReduceLogSumExp on the CPU, and more accurate.
    column = g.constant("first", 0), g.constant("second", 1), g.constant("last", -1)
    return g.op("Sub", g.op("Slice", x, *column), g.op("Slice", g.op("LogSoftmax", x, axis=-1), *column))


def _layer(
    g: GraphBuilder, layer: LayerWeights, indices: _Indices, stream: _Stream
) -> tuple[ir.Value, ir.Value]:
    # stream [n, H] -> the same after the layer; the last layer: -> [m, H]
    normed, rows = _norm(g, layer.input_norm, stream)
    unpad = indices.unpad_index
    if layer is g.weights.layers[-1]:
        unpad = g.op("Gather", unpad, indices.score_index)
        rows = g.op("Gather", rows, indices.score_index)
    attended = _attention(g, layer, indices, normed, unpad)
    normed, rows = _norm(g, layer.post_norm, (rows, attended))
    return rows, _mlp(g, layer, normed)


def _norm(g: GraphBuilder, scale: TensorRef, stream: _Stream) -> tuple[ir.Value, ir.Value]:
    # stream [n, H] -> RMS norm of its sum, the sum
    rows, delta = stream
    epsilon = g.shape.rms_norm_eps
    if delta is None:
        return g.op("SimplifiedLayerNormalization", rows, g.weight(scale), axis=-1, epsilon=epsilon), rows
    normed, _, _, total = g.ops(
        "SkipSimplifiedLayerNormalization", 4, delta, rows, g.weight(scale), epsilon=epsilon
    )
    return normed, total


def _attention(
    g: GraphBuilder, layer: LayerWeights, indices: _Indices, normed: ir.Value, unpad: ir.Value
) -> ir.Value:
    # normed [n, H] -> [len(unpad), H]; the padded view [B, S, ...] exists only in here
    qkv = g.op("Add", _linear(g, layer.qkv, normed), g.weight(layer.qkv_bias))  # [n, (Nq + 2 Nkv) D]
    padded = g.op("Gather", qkv, indices.pad_index)  # [B, S, (Nq + 2 Nkv) D]
    # present_key and present_value are named and left dangling: the CPU's flash path needs them
    attended, _, _ = g.ops(
        "GroupQueryAttention",
        3,
        padded,
        None,
        None,
        None,
        None,
        indices.seqlens_k,
        indices.total_sequence_length,
        g.weight(g.weights.cos),
        g.weight(g.weights.sin),
        num_heads=g.shape.num_attention_heads,
        kv_num_heads=g.shape.num_key_value_heads,
        do_rotary=1,
    )
    flat = g.op("Reshape", attended, g.constant("flat", -1, g.shape.num_attention_heads * g.shape.head_dim))
    return _linear(g, layer.output, g.op("Gather", flat, unpad))


def _mlp(g: GraphBuilder, layer: LayerWeights, normed: ir.Value) -> ir.Value:
    # normed [n, H] -> down(silu(gate) * up) [n, H]
    gate = _linear(g, layer.gate, normed)  # [n, I]
    up = _linear(g, layer.up, normed)
    if g.shape.fused_silu:
        activated = g.op("QuickGelu", gate, domain=MICROSOFT, alpha=1.0)
    else:
        activated = g.op("Mul", gate, g.op("Sigmoid", gate))
    return _linear(g, layer.down, g.op("Mul", activated, up))


def _linear(g: GraphBuilder, matrix: Matrix, rows: ir.Value) -> ir.Value:
    # rows [n, K] times [N, K] transposed -> [n, N]
    if isinstance(matrix, FloatMatrix):
        return g.op("Gemm", rows, g.weight(matrix.values), transB=1)
    return g.op(
        "MatMulNBits",
        rows,
        g.weight(matrix.codes),
        g.weight(matrix.scales),
        domain=MICROSOFT,
        K=matrix.columns,
        N=matrix.codes.shape[0],
        bits=matrix.bits,
        block_size=matrix.block_size,
        accuracy_level=EXACT_ACTIVATIONS,
    )


def _gather_blocks(g: GraphBuilder, table: BlockMatrix, ids: ir.Value) -> ir.Value:
    # ids [n] -> (code - 128) * scale of their rows [n, K]
    if table.bits != 8:
        raise ValueError("the embedding is stored at 8 bits or better")
    _, blocks, block_size = table.codes.shape
    codes = g.cast(g.op("Gather", g.weight(table.codes), ids), ir.DataType.UINT8, g.compute)  # [n, K/b, b]
    zero_point = g.constant("zero_point", 128.0, dtype=g.compute)
    scales = g.op("Gather", g.weight(table.scales, as_stored=True), ids)  # [n, K/b]
    scales = g.cast(scales, table.scales.dtype, g.compute)
    scales = g.op("Unsqueeze", scales, g.constant("last", -1))
    rows = g.op("Mul", g.op("Sub", codes, zero_point), scales)
    rows = g.op("Reshape", rows, g.constant("row", -1, blocks * block_size))
    if blocks * block_size == table.columns:
        return rows
    return g.op(
        "Slice", rows, g.constant("zero", 0), g.constant("columns", table.columns), g.constant("last", -1)
    )
