"""Build the head graph: hidden states -> target logits and log-sum-exps, tile by tile, in fp32.

Logits are materialized for one tile of the vocabulary at a time, which takes c * TILE elements instead of
c * V. For each target the graph outputs its logit and the log-sum-exp of every tile. The runtime computes

    log-prob = logit - logsumexp(log-sum-exps of all tiles)

so that the tiles may be in one graph or in several.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from stepscore.artifact.graph_contract import CHUNK_ROWS, HIDDEN, PARTS, TARGETS
from stepscore_export.graphs.builder import FLOAT, INT64, GraphBuilder
from stepscore_export.graphs.linear import LinearInputs
from stepscore_export.graphs.shape import Shape
from stepscore_export.weights.layout import HeadTile


def head_graph(head: Sequence[HeadTile], shape: Shape) -> ir.Model:
    """Compute the logits and log-sum-exps of a chunk of hidden states over these tiles.

    The output `parts` holds per target and tile the target's logit (0 if it is in another tile) and the
    log-sum-exp.
    """
    # hidden [m, H], rows [c], targets [t, 2] = (index into the chunk, token id) -> parts [t, 2, tiles]
    g = GraphBuilder("head", shape)
    hidden = [g.input(name, g.compute, "m", shape.hidden_size) for name in shape.named(HIDDEN)]
    chosen = g.input(CHUNK_ROWS, INT64, "c")
    targets = g.input(TARGETS, INT64, "t", 2)
    chunk = LinearInputs(g, tuple(g.op("Gather", stream, chosen) for stream in hidden))
    tiles = [[_tile(g, logits, targets, tile) for logits in chunk.matmul(tile.matrix)] for tile in head]
    parts = [g.op("Concat", *of_stream, axis=-1) for of_stream in zip(*tiles, strict=True)]
    size = ("t", 2, len(head))
    return g.finish(
        *((value, name, FLOAT, size) for value, name in zip(parts, shape.named(PARTS), strict=True))
    )


def _tile(g: GraphBuilder, logits: ir.Value, targets: ir.Value, tile: HeadTile) -> ir.Value:
    # logits [c, columns], targets [t, 2] -> [t, 2, 1]
    start = g.constant(f"start_{tile.start}", 0, tile.start)
    # the largest (index into the chunk, column of the tile)
    end = g.constant(f"end_{tile.columns}", 2**62, tile.columns - 1)
    return tile_parts(g, g.cast(logits, g.compute, FLOAT), targets, start, end)


def tile_parts(
    g: GraphBuilder, logits: ir.Value, targets: ir.Value, start: ir.Value, end: ir.Value
) -> ir.Value:
    """Return the parts [t, 2, 1] of one tile from its logits [c, columns] in fp32.

    They are the target's logit (0 if it is in another tile) and the log-sum-exp. Each tile has a single
    result: ONNX Runtime completes it and frees the tile's logits before it starts the next tile.
    """
    shifted = g.op("Sub", targets, start)
    inside = g.op("Min", g.op("Max", shifted, g.constant("zero", 0)), end)
    here = g.op(
        "ReduceMin", g.op("Cast", g.op("Equal", shifted, inside), to=FLOAT.value), g.constant("last", -1)
    )
    logit = g.op("Mul", g.op("Unsqueeze", g.op("GatherND", logits, inside), g.constant("last", -1)), here)
    row = g.op("Mul", targets, g.constant("row_only", 1, 0))
    log_sum = g.op("Unsqueeze", g.op("GatherND", _log_sum_exp(g, logits), row), g.constant("last", -1))
    pair = g.op("Concat", logit, log_sum, axis=-1)  # [t, 2]
    return g.op("Unsqueeze", pair, g.constant("last", -1))


def _log_sum_exp(g: GraphBuilder, x: ir.Value) -> ir.Value:
    # [c, k] -> [c, 1], as x[0] - log_softmax(x)[0]: on the CPU ONNX Runtime's LogSoftmax is five times as
    # fast as its ReduceLogSumExp, and more accurate.
    column = g.constant("first", 0), g.constant("second", 1), g.constant("last", -1)
    return g.op("Sub", g.op("Slice", x, *column), g.op("Slice", g.op("LogSoftmax", x, axis=-1), *column))
