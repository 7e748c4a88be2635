"""Attention of few queries to many keys, of standard operators: see stepscore.batching.few_queries."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from stepscore.artifact.graph_contract import FEW_KEYS, FEW_MASK, FEW_POSITIONS, FEW_QUERIES
from stepscore_export.graphs.builder import INT64, MICROSOFT, GraphBuilder


@dataclass(frozen=True, slots=True)
class FewQueryInputs:
    """The view of F sequences, Q queries and S keys: F is 0 in a batch without it."""

    queries: ir.Value
    positions: ir.Value
    keys: ir.Value
    mask: ir.Value
    is_used: ir.Value
    scores: ir.Value
    """The shape [F, Nq, Q, S]."""
    grouped: ir.Value
    """The shape [F, Nkv, Nq / Nkv * Q, S]."""

    @classmethod
    def declare(cls, g: GraphBuilder) -> FewQueryInputs:
        """Declare the inputs of a graph, and compute once what every layer needs of them."""
        queries = g.input(FEW_QUERIES, INT64, "few", "queries")
        mask = g.input(FEW_MASK, g.compute, "few", "queries", "keys")
        sizes = g.op("Shape", mask)
        of_scores = g.op("Slice", sizes, g.constant("few_queries_axis", 1), g.constant("few_end", 3))
        of_keys = g.op("Slice", sizes, g.constant("few_keys_axis", 2), g.constant("few_end", 3))
        heads, groups = g.shape.num_attention_heads, g.shape.num_key_value_heads
        count = g.op("Gather", sizes, g.scalar("few_axis", 0))
        return cls(
            queries=queries,
            positions=g.input(FEW_POSITIONS, INT64, "few", "queries"),
            keys=g.input(FEW_KEYS, INT64, "few", "keys"),
            mask=mask,
            is_used=g.op("Cast", count, to=ir.DataType.BOOL.value),
            scores=g.op("Concat", g.constant("few_by_head", 0, heads), of_scores, axis=0),
            grouped=g.op("Concat", g.constant("few_by_group", 0, groups, -1), of_keys, axis=0),
        )


def attend_few(
    g: GraphBuilder, inputs: FewQueryInputs, qkv: ir.Value, tables: Sequence[ir.Value], unpad: ir.Value
) -> Callable[[GraphBuilder], ir.Value]:
    """Return the branch softmax(q k^T / sqrt(D) + mask) v of the queries, [len(unpad), Nq D].

    Query heads that share a key head are rows of one matmul. `tables` are the rotary cosines and sines.
    """
    # qkv [g + n, (Nq + 2 Nkv) D]
    heads, groups, size = g.shape.num_attention_heads, g.shape.num_key_value_heads, g.shape.head_dim
    ends = (0, heads * size, (heads + groups) * size, (heads + 2 * groups) * size)
    bounds = [g.constant(f"few_part_{end}", end) for end in ends]
    last = g.constant("few_last", -1)
    scale = g.scalar("few_scale", size**-0.5, g.compute)
    start = g.constant("few_start", 0)
    split_queries = g.constant("few_split_queries", 0, 0, groups, heads // groups, size)
    split_keys = g.constant("few_split_keys", 0, 0, groups, size)
    joined = g.constant("few_joined", 0, groups, -1, size)
    by_head = g.constant("few_rows_by_head", 0, heads, -1, size)
    flat = g.constant("few_flat", -1, heads * size)
    head_axis = g.constant("few_head_axis", 1)

    def branch(b: GraphBuilder) -> ir.Value:
        def rotated(x: ir.Value, positions: ir.Value) -> ir.Value:
            return b.op("RotaryEmbedding", x, positions, *tables, domain=MICROSOFT)

        def part(index: int, rows: ir.Value) -> ir.Value:  # [F, rows, heads * D]
            return b.op("Gather", b.op("Slice", qkv, bounds[index], bounds[index + 1], last), rows)

        queries = b.op("Mul", rotated(part(0, inputs.queries), inputs.positions), scale)
        queries = b.op("Transpose", b.op("Reshape", queries, split_queries), perm=[0, 2, 3, 1, 4])
        queries = b.op("Reshape", queries, joined)  # [F, Nkv, Nq / Nkv * Q, D]
        keys = b.op("Reshape", rotated(part(1, inputs.keys), start), split_keys)
        values = b.op("Reshape", part(2, inputs.keys), split_keys)
        scores = b.op("MatMul", queries, b.op("Transpose", keys, perm=[0, 2, 3, 1]))
        scores = b.op("Reshape", scores, inputs.scores)
        weights = b.op("Softmax", b.op("Add", scores, b.op("Unsqueeze", inputs.mask, head_axis)), axis=-1)
        weights = b.op("Reshape", weights, inputs.grouped)
        attended = b.op("MatMul", weights, b.op("Transpose", values, perm=[0, 2, 1, 3]))
        attended = b.op("Transpose", b.op("Reshape", attended, by_head), perm=[0, 2, 1, 3])
        return b.op("Gather", b.op("Reshape", attended, flat), unpad)

    return branch
