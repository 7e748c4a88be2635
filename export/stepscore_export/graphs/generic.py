"""Build the graphs of a pair for CUDA: one layer, one tile of the head, decoders; weights are inputs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import onnx_ir as ir

from stepscore.artifact import generic_graphs as names
from stepscore.artifact.generic_graphs import Decoder
from stepscore.artifact.graph_contract import CHUNK_ROWS, HIDDEN, PARTS, TARGETS
from stepscore_export.graphs.builder import FLOAT, INT64, GraphBuilder, with_weights_as_inputs
from stepscore_export.graphs.decoder import layer_graph
from stepscore_export.graphs.head import tile_parts
from stepscore_export.graphs.shape import Shape
from stepscore_export.weights.layout import FloatMatrix, LayerWeights, QueryKeyNorms, RotaryWeights, Vectors
from stepscore_export.weights.weight_file import TensorRef

INT8, INT4 = ir.DataType.INT8, ir.DataType.INT4


def generic_layer(shape: Shape, positions: int, intermediate_size: int, *, last: bool) -> ir.Model:
    """Build a layer of one model; every layer of the model has this graph, the last one `last`."""
    heads, hidden = shape.num_attention_heads * shape.head_dim, shape.hidden_size
    projected = heads + 2 * shape.num_key_value_heads * shape.head_dim

    def vector(name: str, *size: int) -> Vectors:
        return (TensorRef(name, shape.compute, size, 0),)

    def matrix(name: str, rows: int, columns: int) -> FloatMatrix:
        return FloatMatrix(TensorRef(name, shape.compute, (rows, columns), 0))

    layer = LayerWeights(
        input_norm=vector(names.INPUT_NORM, hidden),
        qkv=matrix("qkv", projected, hidden),
        qkv_bias=vector(names.QKV_BIAS, projected) if shape.attention_bias else None,
        qk_norms=QueryKeyNorms(
            vector(names.QUERY_NORM, shape.head_dim), vector(names.KEY_NORM, shape.head_dim)
        )
        if shape.qk_norm
        else None,
        output=matrix("output", hidden, heads),
        post_norm=vector(names.POST_NORM, hidden),
        gate=matrix("gate", intermediate_size, hidden),
        up=matrix("up", intermediate_size, hidden),
        down=matrix("down", hidden, intermediate_size),
    )
    tables = (positions, shape.head_dim // 2)
    rotary = RotaryWeights(vector(names.ROTARY_COS, *tables), vector(names.ROTARY_SIN, *tables))
    norm = vector(names.FINAL_NORM, hidden) if last else None
    return with_weights_as_inputs(layer_graph(layer, rotary, shape, None, norm))


def generic_head_tile(shape: Shape, *, fp32_logits: bool = False) -> ir.Model:
    """Build the head over one tile of the vocabulary, of any size, from token START[1] on.

    END is (2^62, columns - 1), the largest index pair within the tile. With `fp32_logits` hidden states and
    tile are widened before the GEMM.
    """
    # hidden [m, H], rows [c], targets [t, 2], tile [k, H] -> parts [t, 2, 1]
    g = GraphBuilder("head_tile", shape)
    hidden = g.input(HIDDEN, g.compute, "m", shape.hidden_size)
    chosen = g.input(CHUNK_ROWS, INT64, "c")
    targets = g.input(TARGETS, INT64, "t", 2)
    start, end = g.input(names.START, INT64, 2), g.input(names.END, INT64, 2)
    tile = g.input(names.TILE_WEIGHT, g.compute, "k", shape.hidden_size)
    rows = g.op("Gather", hidden, chosen)
    if fp32_logits:
        rows, tile = (g.op("Cast", each, to=FLOAT.value) for each in (rows, tile))
    logits = g.op("Gemm", rows, tile, transB=1)
    if not fp32_logits:
        logits = g.cast(logits, g.compute, FLOAT)
    return g.finish((tile_parts(g, logits, targets, start, end), PARTS, FLOAT, ("t", 2, 1)))


def decoder_graph(decoder: Decoder, scales: ir.DataType, shape: Shape) -> ir.Model:
    """Build a decoder whose scales are stored in this type, for weights in the compute type."""
    g = GraphBuilder(decoder.name, shape)
    if decoder.bits == 8:
        weight = _dequantized_blocks(g, decoder, scales)
    else:
        weight = _dequantized_rows(g, decoder, scales)
    if decoder.padded:
        columns = g.input(names.NUM_COLUMNS, INT64, 1)
        weight = g.op("Slice", weight, g.constant("first", 0), columns, g.constant("second", 1))
    size = ("rows", "columns")
    if decoder.add:
        weight = g.op("Add", g.input(names.BASE, g.compute, *size), weight)
    return g.finish((weight, names.WEIGHT, g.compute, size))


def _dequantized_blocks(g: GraphBuilder, decoder: Decoder, scales: ir.DataType) -> ir.Value:
    # codes [b, s], scales [b] -> [b, s], or [rows, b / rows * s] where rows are padded
    codes = g.input(names.CODES, INT8, "b", decoder.block_size)
    factors = g.cast(g.input(names.SCALES, scales, "b"), scales, g.compute)
    values = g.op("DequantizeLinear", codes, factors, axis=0)
    if not decoder.padded:
        return values
    rows = g.op("Concat", g.input(names.NUM_ROWS, INT64, 1), g.constant("rest", -1), axis=0)
    return g.op("Reshape", values, rows)


def _dequantized_rows(g: GraphBuilder, decoder: Decoder, scales: ir.DataType) -> ir.Value:
    # codes [rows, k], scales [rows, k / s] -> [rows, k]
    codes = g.input(names.CODES, INT4, "rows", "k")
    factors = g.cast(g.input(names.SCALES, scales, "rows", "b"), scales, g.compute)
    zeros = (g.input(names.ZEROS, INT4, "rows", "b"),) if decoder.zeros else ()
    return g.op("DequantizeLinear", codes, factors, *zeros, axis=1, block_size=decoder.block_size)


def cast_graph(stored: ir.DataType, shape: Shape) -> ir.Model:
    """Build the conversion of a stored floating-point matrix to the compute type."""
    g = GraphBuilder(names.CAST, shape)
    codes = g.input(names.CODES, stored, "rows", "columns")
    weight = g.op("Cast", codes, to=g.compute.value)
    return g.finish((weight, names.WEIGHT, g.compute, ("rows", "columns")))


def of_models(shape: Shape) -> Iterator[Shape]:
    """Yield the shape of each model of a unit alone."""
    for model, epsilon in zip(shape.models, shape.rms_norm_eps, strict=True):
        yield replace(shape, models=(model,), rms_norm_eps=(epsilon,))
