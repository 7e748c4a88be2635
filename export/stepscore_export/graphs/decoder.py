"""Build a decoder as ONNX graphs: one function per block, with the shapes in its first comment.

    embed   input_ids [n] -> rows [n, H]
    body    rows, indices -> hidden [m, H], kept [q, K] a layer     all layers
    layer   rows, indices -> next_rows [n, H], kept [q, K]          the last one outputs hidden [m, H]
    head    hidden, rows [c], targets [t, 2] -> logprobs [t]        (head.py)

`rows` are the hidden states, one row per token. A unit of two models computes two streams: `rows_reference`
and `rows_policy` instead of `rows`, and likewise for the other tensors.

The n computed tokens of all sequences of a batch are packed, without padding. Only attention uses the padded
view. `pad_index` [B, S] gives the packed token of each position. `unpad_index` [n] gives one position (of
B * S) of each row. A row may belong to several sequences, which is how a prefix is shared. The first g packed
tokens are given: their keys and values are inputs, and nothing else of them is computed. `score_index` [m]
lists the rows whose next token is scored; the last layer drops the other rows before its MLP, and puts the
hidden states of k given tokens in front. `kept_index` [q] lists the rows whose keys and values are outputs,
to be given to later batches (kept.py). The head gathers c of these k + m, and `targets` are pairs (index into
those c, token id). Neither [n, vocabulary] nor [c, vocabulary] is ever materialized.

Graphs store no weights: every initializer refers to bytes of the unit's weights.bin, and the body and the
layers refer to the same bytes. Operators are from ONNX opset 21 and ONNX Runtime's com.microsoft domain.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from stepscore.artifact.generic_graphs import GIVEN
from stepscore.artifact.graph_contract import (
    GIVEN_HIDDEN,
    HIDDEN,
    INPUT_IDS,
    NEXT_ROWS,
    PAD_INDEX,
    ROWS,
    SCORE_INDEX,
    SCORED_AXIS,
    SEQLENS_K,
    SHORT_TOKENS,
    TOTAL_SEQUENCE_LENGTH,
    UNPAD_INDEX,
    given_name,
)
from stepscore_export.graphs.builder import FLOAT, INT32, INT64, MICROSOFT, GraphBuilder, Output
from stepscore_export.graphs.few_queries import FewQueryInputs, attend_few
from stepscore_export.graphs.kept import declare_kept_index, kept_outputs, kept_rows
from stepscore_export.graphs.linear import LinearInputs, Streams
from stepscore_export.graphs.projection import biased_and_normed
from stepscore_export.graphs.shape import Shape
from stepscore_export.weights.layout import (
    BlockMatrix,
    FloatMatrix,
    LayerWeights,
    RotaryWeights,
    Table,
    UnitWeights,
    Vectors,
)
from stepscore_export.weights.weight_file import TensorRef

ATTENTION = "GroupQueryAttention"
INTERMEDIATE_OUTPUTS = ("into_qkv", "into_output", "into_mlp", "into_down")


@dataclass(frozen=True, slots=True)
class _Residual:
    """The residual stream [n, H] and the block output `delta` [n, H] that the next norm will add to it."""

    rows: Streams
    delta: Streams
    kept: Streams = ()
    """Keys and values of the layer's kept rows [q, 2 Nkv D]."""


@dataclass(frozen=True, slots=True)
class _Shared:
    """Inputs of every layer: the index tensors and the rotary tables."""

    rotary: RotaryWeights

    pad_index: ir.Value
    unpad_index: ir.Value
    seqlens_k: ir.Value
    total_sequence_length: ir.Value
    score_index: ir.Value | None
    kept_index: ir.Value
    few: FewQueryInputs | None
    """Inputs of batches with few queries; None in the graph of every layer."""
    is_short: ir.Value | None
    """Whether sequences are short enough for the unfused attention kernel; None if there is one kernel."""

    @classmethod
    def declare(cls, g: GraphBuilder, rotary: RotaryWeights, *, scored: bool, generic: bool) -> _Shared:
        length = g.input(TOTAL_SEQUENCE_LENGTH, INT32)
        return cls(
            rotary=rotary,
            pad_index=g.input(PAD_INDEX, INT64, "batch", "sequence"),
            unpad_index=g.input(UNPAD_INDEX, INT64, "n"),
            seqlens_k=g.input(SEQLENS_K, INT32, "batch"),
            total_sequence_length=length,
            score_index=g.input(SCORE_INDEX, INT64, "m") if scored else None,
            kept_index=declare_kept_index(g),
            few=FewQueryInputs.declare(g) if g.shape.on_cpu and not generic else None,
            is_short=_is_short(g, length) if g.shape.on_cpu else None,
        )


def embed_graph(embedding: tuple[Table, ...], shape: Shape, rotation: TensorRef | None = None) -> ir.Model:
    """Look up the token embeddings, and rotate them where the layers are rotated.

    Tables keep their storage type, and only the gathered rows are cast.
    """
    # input_ids [n] -> rows [n, H]
    g = GraphBuilder("embed", shape)
    ids = g.input(INPUT_IDS, INT64, "n")
    rows = tuple(_looked_up(g, table, ids) for table in embedding)
    if rotation is not None:
        rows = tuple(g.op("MatMul", each, g.weight(rotation)) for each in rows)
    rows = tuple(g.op("Identity", each) for each in rows)
    return g.finish(*_outputs(shape, ROWS, "n", rows))


def body_graph(weights: UnitWeights, shape: Shape) -> ir.Model:
    """Chain all layers, with the operators of the layer graphs in their order: results are bit-identical."""
    # rows [n, H] -> hidden [m, H]
    g = GraphBuilder("body", shape)
    rows = _rows_input(g)
    shared = _Shared.declare(g, weights.rotary, scored=True, generic=False)
    *layers, last = weights.layers
    kept: list[Output] = []
    for index, layer in enumerate(layers):
        residual = _layer(g, layer, shared, rows, _given_input(g, index), last=False)
        rows = _summed(g, residual)
        kept += kept_outputs(g, residual.kept, index)
    residual = _layer(g, last, shared, rows, _given_input(g, len(layers)), last=True)
    kept += kept_outputs(g, residual.kept, len(layers))
    hidden, _ = _norm(g, weights.norm, residual)
    return g.finish(*_outputs(shape, HIDDEN, SCORED_AXIS, _with_given_hidden(g, hidden)), *kept)


def layer_graph(
    layer: LayerWeights, rotary: RotaryWeights, shape: Shape, index: int | None, final_norm: Vectors | None
) -> ir.Model:
    """Build one layer, which adds its last residual itself; the last layer applies `final_norm`.

    `index` is None where the graph is that of every layer (generic.py).
    """
    g, outputs = _one_layer(layer, rotary, shape, index, final_norm)
    return g.finish(*outputs)


def layer_graph_with_intermediate_outputs(
    layer: LayerWeights, rotary: RotaryWeights, shape: Shape, index: int, final_norm: Vectors | None
) -> ir.Model:
    """Build one layer with the inputs of its matrices as additional outputs (INTERMEDIATE_OUTPUTS)."""
    g, outputs = _one_layer(layer, rotary, shape, index, final_norm)
    width = ("n", "width")
    return g.finish(
        *outputs,
        *(
            (g.op("Identity", g.intermediate_outputs[name]), name, shape.compute, width)
            for name in INTERMEDIATE_OUTPUTS
        ),
    )


def _one_layer(
    layer: LayerWeights, rotary: RotaryWeights, shape: Shape, index: int | None, final_norm: Vectors | None
) -> tuple[GraphBuilder, list[Output]]:
    # rows [n, H] -> next_rows [n, H]; the last layer: -> hidden [m, H]
    last = final_norm is not None
    g = GraphBuilder("layer" if index is None else f"layer-{index:02d}", shape)
    rows = _rows_input(g)
    shared = _Shared.declare(g, rotary, scored=last, generic=index is None)
    residual = _layer(g, layer, shared, rows, _given_input(g, index), last=last)
    if final_norm is not None:
        hidden, _ = _norm(g, final_norm, residual)
        kept = kept_outputs(g, residual.kept, index)
        return g, _outputs(shape, HIDDEN, SCORED_AXIS, _with_given_hidden(g, hidden)) + kept
    return g, _outputs(shape, NEXT_ROWS, "n", _summed(g, residual)) + kept_outputs(g, residual.kept, index)


def _rows_input(g: GraphBuilder) -> Streams:
    width = g.shape.hidden_size
    return tuple(g.input(name, g.compute, "n", width) for name in g.shape.named(ROWS))


def _given_input(g: GraphBuilder, index: int | None) -> Streams:
    """Declare the keys and values [g, 2 Nkv D] of given rows, and return them as rows of q, k and v."""
    shape = g.shape
    queries = shape.num_attention_heads * shape.head_dim
    width = 2 * shape.num_key_value_heads * shape.head_dim
    before = g.constant("before_keys", 0, queries, 0, 0)
    name = GIVEN if index is None else given_name(index)
    inputs = (g.input(each, g.compute, "g", width) for each in shape.named(name))
    return tuple(g.op("Pad", each, before) for each in inputs)


def _with_given_hidden(g: GraphBuilder, hidden: Streams) -> Streams:
    # hidden [m, H] -> [k + m, H]
    width = g.shape.hidden_size
    given = (g.input(name, g.compute, "k", width) for name in g.shape.named(GIVEN_HIDDEN))
    return tuple(g.op("Concat", *pair, axis=0) for pair in zip(given, hidden, strict=True))


def _summed(g: GraphBuilder, residual: _Residual) -> Streams:
    return tuple(g.op("Add", rows, delta) for rows, delta in zip(residual.rows, residual.delta, strict=True))


def _outputs(shape: Shape, name: str, rows: str, streams: Streams) -> list[Output]:
    return [
        (value, each, shape.compute, (rows, shape.hidden_size))
        for value, each in zip(streams, shape.named(name), strict=True)
    ]


def _layer(
    g: GraphBuilder, layer: LayerWeights, shared: _Shared, rows: Streams, given: Streams, *, last: bool
) -> _Residual:
    # rows [n, H] -> residual after the layer [n, H]; the last layer: -> [m, H]
    normed = tuple(
        g.op("SimplifiedLayerNormalization", stream, g.weight(scale), axis=-1, epsilon=epsilon)
        for stream, scale, epsilon in zip(rows, layer.input_norm, g.shape.rms_norm_eps, strict=True)
    )
    unpad = shared.unpad_index
    if last:
        unpad = g.op("Gather", unpad, shared.score_index)
        rows = tuple(g.op("Gather", stream, shared.score_index) for stream in rows)
    attended, kept = _attention(g, layer, shared, normed, given=given, unpad=unpad)
    normed, rows = _norm(g, layer.post_norm, _Residual(rows, attended))
    return _Residual(rows, _mlp(g, layer, normed), kept)


def _norm(g: GraphBuilder, scales: Vectors, residual: _Residual) -> tuple[Streams, Streams]:
    # residual [n, H] -> RMSNorm(rows + delta), rows + delta
    streams = zip(residual.rows, residual.delta, scales, g.shape.rms_norm_eps, strict=True)
    normed, sums = zip(*(_norm_stream(g, *stream) for stream in streams), strict=True)
    return normed, sums


def _norm_stream(
    g: GraphBuilder, rows: ir.Value, delta: ir.Value, scale: TensorRef, epsilon: float
) -> tuple[ir.Value, ir.Value]:
    normed, _, _, total = g.ops(
        "SkipSimplifiedLayerNormalization", 4, delta, rows, g.weight(scale), epsilon=epsilon
    )
    return normed, total


def _attention(
    g: GraphBuilder,
    layer: LayerWeights,
    shared: _Shared,
    normed: Streams,
    *,
    given: Streams,
    unpad: ir.Value,
) -> tuple[Streams, Streams]:
    # normed [n, H] -> [len(unpad), H], kept [q, 2 Nkv D]
    g.intermediate_outputs["into_qkv"] = normed[0]
    projected = biased_and_normed(g, layer, LinearInputs(g, normed).matmul(layer.qkv))
    kept, no_rows = kept_rows(g, projected, shared.kept_index)
    attended = tuple(
        _attend(g, g.op("Concat", known, qkv, nothing, axis=0), tables, shared, unpad)
        for known, qkv, nothing, *tables in zip(
            given, projected, no_rows, shared.rotary.cos, shared.rotary.sin, strict=True
        )
    )
    g.intermediate_outputs["into_output"] = attended[0]
    return LinearInputs(g, attended).matmul(layer.output), kept


def _attend(
    g: GraphBuilder, qkv: ir.Value, tables: Sequence[TensorRef], shared: _Shared, unpad: ir.Value
) -> ir.Value:
    # qkv [g + n, (Nq + 2 Nkv) D] -> [len(unpad), Nq D]; the padded view [B, S, ...] exists only here
    padded = g.op("Gather", qkv, shared.pad_index)
    cos, sin = (g.weight(table) for table in tables)
    inputs = (padded, None, None, None, None, shared.seqlens_k, shared.total_sequence_length, cos, sin)
    attended = _by_length(g, shared.is_short, inputs) if shared.is_short else _flash(g, inputs)
    flat = g.op("Reshape", attended, g.constant("flat", -1, g.shape.num_attention_heads * g.shape.head_dim))
    if shared.few is None:
        return g.op("Gather", flat, unpad)
    few = attend_few(g, shared.few, qkv, (cos, sin), unpad)
    return g.choose(shared.few.is_used, few, lambda b: b.op("Gather", flat, unpad))


def _is_short(g: GraphBuilder, length: ir.Value) -> ir.Value:
    return g.op("LessOrEqual", length, g.scalar("short_tokens", SHORT_TOKENS, INT32))


def _by_length(g: GraphBuilder, is_short: ir.Value, inputs: Sequence[ir.Value | None]) -> ir.Value:
    """Choose between the two attention kernels of ONNX Runtime's CPU provider.

    The unfused kernel materializes the [B, Nq, S, S] scores and is up to twice as fast on short sequences;
    the flash kernel never materializes them.
    """
    return g.choose(
        is_short, lambda b: b.ops(ATTENTION, 1, *inputs, **_heads(g))[0], lambda b: _flash(b, inputs)
    )


def _flash(g: GraphBuilder, inputs: Sequence[ir.Value | None]) -> ir.Value:
    # The CPU provider takes its flash path only if present_key and present_value are declared, though unused.
    attended, _, _ = g.ops(ATTENTION, 3, *inputs, **_heads(g))
    return attended


def _heads(g: GraphBuilder) -> dict[str, int]:
    shape = g.shape
    return {"num_heads": shape.num_attention_heads, "kv_num_heads": shape.num_key_value_heads, "do_rotary": 1}


def _mlp(g: GraphBuilder, layer: LayerWeights, normed: Streams) -> Streams:
    # normed [n, H] -> down(silu(gate) * up) [n, H]
    g.intermediate_outputs["into_mlp"] = normed[0]
    rows = LinearInputs(g, normed)
    gates, (ups, unit) = rows.matmul(layer.gate), rows.matmul_in_units(layer.up)  # [n, I]
    activated = tuple(_gated(g, gate, up) for gate, up in zip(gates, ups, strict=True))
    g.intermediate_outputs["into_down"] = activated[0]
    return LinearInputs(g, activated, unit).matmul(layer.down)


def _gated(g: GraphBuilder, gate: ir.Value, up: ir.Value) -> ir.Value:
    # silu(gate) * up
    if g.compute == ir.DataType.FLOAT16:
        # In this order no optimizer of ONNX Runtime makes QuickGelu of it, whose 1 - 1 / (1 + exp(x)) cancels
        # for small values in fp16; a product with a sigmoid cannot overflow.
        return g.op("Mul", g.op("Mul", g.op("Sigmoid", gate), up), gate)
    return g.op("Mul", _silu(g, gate), up)


def _silu(g: GraphBuilder, x: ir.Value) -> ir.Value:
    # In fp32: bf16 has too few bits for a rounded sigmoid.
    wide = g.cast(x, g.compute, FLOAT)
    return g.cast(g.op("QuickGelu", wide, domain=MICROSOFT, alpha=1.0), FLOAT, g.compute)


def _looked_up(g: GraphBuilder, table: Table, ids: ir.Value) -> ir.Value:
    # ids [n] -> embeddings [n, K]
    if isinstance(table, FloatMatrix):
        rows = g.op("Gather", g.weight(table.values, as_stored=True), ids)
        return g.cast(rows, table.values.dtype, g.compute)
    return _gather_blocks(g, table, ids)


def _gather_blocks(g: GraphBuilder, table: BlockMatrix, ids: ir.Value) -> ir.Value:
    # ids [n] -> dequantized embeddings [n, K]: (code - 128) * scale
    if table.bits != 8:
        raise ValueError(f"a quantized embedding must have 8 bits, found {table.bits}")
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
