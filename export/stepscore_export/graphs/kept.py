"""Outputs of a layer that a later call can be given: keys and values of chosen rows."""

from __future__ import annotations

import onnx_ir as ir

from stepscore.artifact.generic_graphs import KEPT
from stepscore.artifact.graph_contract import KEPT_INDEX, kept_name
from stepscore_export.graphs.builder import INT64, GraphBuilder, Output
from stepscore_export.graphs.linear import Streams


def declare_kept_index(g: GraphBuilder) -> ir.Value:
    """Declare the indices, among the n computed rows, of those that are kept."""
    return g.input(KEPT_INDEX, INT64, "q")


def kept_rows(g: GraphBuilder, projected: Streams, kept_index: ir.Value) -> tuple[Streams, Streams]:
    """Return keys, before rotary embedding, and values of the kept rows, exactly as attention reads them.

    The second value has no rows: attention joins it, and so runs after the rows were gathered. ONNX Runtime
    runs last what only an output needs, and would hold q, k and v of all layers until then.
    """
    # q, k and v of every row [n, (Nq + 2 Nkv) D] -> [q, 2 Nkv D], [0, (Nq + 2 Nkv) D]
    queries = g.shape.num_attention_heads * g.shape.head_dim
    width = queries + 2 * g.shape.num_key_value_heads * g.shape.head_dim
    ends = g.constant("kept_first", queries), g.constant("kept_end", width), g.constant("kept_axis", 1)
    none = (g.constant("kept_none", 0),) * 3
    gathered = [g.op("Gather", rows, kept_index) for rows in projected]
    return (
        tuple(g.op("Slice", rows, *ends) for rows in gathered),
        tuple(g.op("Slice", rows, *none) for rows in gathered),
    )


def kept_outputs(g: GraphBuilder, kept: Streams, index: int | None) -> list[Output]:
    """Return the outputs of a layer's kept rows; `index` is None where the graph is that of every layer."""
    shape = g.shape
    width = 2 * shape.num_key_value_heads * shape.head_dim
    names = shape.named(KEPT if index is None else kept_name(index))
    return [(value, name, shape.compute, ("q", width)) for value, name in zip(kept, names, strict=True)]
