"""The body of a pair: the modelling code that optimum traced, between embedding and head, on packed tokens.

A traced model takes token ids, a mask and positions, and gives logits. Its embedding and its head are cut
off; nodes in front turn the inputs of a batch into padded positions, nodes behind gather the scored tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NoReturn

import onnx
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from stepscore.artifact.graph_contract import (
    BODY,
    HIDDEN,
    PAD_INDEX,
    ROWS,
    SCORE_INDEX,
    SEQLENS_K,
    UNPAD_INDEX,
)
from stepscore.errors import ExportError
from stepscore_export.backends.optimum_trace import INPUTS, OUTPUT
from stepscore_export.families.base import EMBEDDING
from stepscore_export.families.base import HEAD as HEAD_WEIGHT
from stepscore_export.graphs.builder import INT32, INT64, GraphBuilder
from stepscore_export.graphs.shape import Shape
from stepscore_export.weights.weight_file import TensorRef


def body_of(traced: bytes, layers: Sequence[TensorRef], shape: Shape) -> ir.Model:
    """Return the traced model between its embedding and its head, on the inputs of a packed batch."""
    # rows [n, H], indices -> hidden [m, H]
    code = ir.from_proto(onnx.load_model_from_string(traced))
    _check_interface(code.graph)
    inputs = {str(value.name): value for value in code.graph.inputs}
    embedded, hidden = _embedded(inputs[INPUTS[0]]), _hidden(code.graph.outputs[0])
    g = GraphBuilder(BODY.removesuffix(".onnx"), shape)
    unpad, scored = (g.input(name, INT64, size) for name, size in ((UNPAD_INDEX, "n"), (SCORE_INDEX, "m")))
    padded, mask, positions = _padded(g)
    embedded.replace_all_uses_with(padded)
    inputs["attention_mask"].replace_all_uses_with(mask)
    inputs["position_ids"].replace_all_uses_with(positions)
    for ref in layers:
        _attach(g, inputs, ref)
    before = list(g.tape.nodes)
    flat = g.op("Reshape", hidden, g.constant("flat", -1, shape.hidden_size))  # [B * S, H]
    rows = g.op("Gather", flat, g.op("Gather", unpad, scored))
    traced_nodes = list(code.graph)
    code.graph.outputs.clear()
    code.graph.remove(traced_nodes)
    nodes = [*before, *traced_nodes, *g.tape.nodes[len(before) :]]
    size = ("m", shape.hidden_size)
    body = g.finish((rows, HIDDEN, shape.compute, size), nodes=nodes, opset=code.opset_imports[""])
    RemoveUnusedNodesPass()(body)
    return body


def _check_interface(graph: ir.Graph) -> None:
    found = [str(value.name) for value in graph.inputs]
    missing = [name for name in INPUTS if name not in found]
    outputs = [str(value.name) for value in graph.outputs]
    if missing or outputs != [OUTPUT]:
        _reject(f"has the inputs {_listed(found)} and the outputs {_listed(outputs)}")


def _embedded(input_ids: ir.Value) -> ir.Value:
    """Return the embedded tokens [B, S, H], the only use of the token ids."""
    nodes = [node for node, _ in input_ids.uses()]
    if [node.op_type for node in nodes] != ["Gather"] or _named(nodes[0].inputs[0]) != EMBEDDING:
        _reject(f"uses input_ids in {_listed([node.op_type for node in nodes])}, expected one Gather")
    return nodes[0].outputs[0]


def _hidden(logits: ir.Value) -> ir.Value:
    """Return the hidden states [B, S, H] that enter the head."""
    product = logits.producer()
    if product is None or product.op_type != "MatMul":
        _reject(f"computes its logits with {product.op_type if product else 'nothing'}, expected MatMul")
    rows, matrix = product.inputs
    transposed = None if matrix is None else matrix.producer()
    if rows is None or transposed is None or _named(transposed.inputs[0]) != HEAD_WEIGHT:
        _reject(f"computes its logits with a MatMul that does not use {HEAD_WEIGHT}")
    return rows


def _attach(g: GraphBuilder, inputs: dict[str, ir.Value], ref: TensorRef) -> None:
    """Replace a parameter of the traced code by the bytes of the weight file."""
    parameter = inputs.get(ref.name)
    if parameter is None:
        _reject(f"has no parameter {ref.name}, only {_listed(inputs)}")
    places = [parameter]
    if len(ref.shape) == 2:
        nodes = [node for node, _ in parameter.uses()]
        if any(node.op_type != "Transpose" for node in nodes):
            _reject(f"uses {ref.name} in {_listed(node.op_type for node in nodes)}, expected Transpose")
        places = [node.outputs[0] for node in nodes]
    weight = g.weight(ref)
    for place in places:
        place.replace_all_uses_with(weight)


def _padded(g: GraphBuilder) -> tuple[ir.Value, ir.Value, ir.Value]:
    """Return embedded tokens [B, S, H], and the mask and positions of the padded view, int64 [B, S]."""
    rows = g.input(ROWS, g.compute, "n", g.shape.hidden_size)
    pad_index = g.input(PAD_INDEX, INT64, "batch", "sequence")
    seqlens_k = g.input(SEQLENS_K, INT32, "batch")
    zero, one, first, second = (
        *(g.scalar(f"plan.{value}", value) for value in (0, 1)),
        *(g.constant(f"plan.[{value}]", value) for value in (0, 1)),
    )
    size = g.op("Shape", pad_index)
    line = g.op("Unsqueeze", g.op("Range", zero, g.op("Gather", size, one), one), first)  # [1, S]
    last = g.op("Unsqueeze", g.cast(seqlens_k, INT32, INT64), second)  # [B, 1]
    mask = g.cast(g.op("LessOrEqual", line, last), ir.DataType.BOOL, INT64)
    return g.op("Gather", rows, pad_index), mask, g.op("Expand", line, size)


def _named(value: ir.Value | None) -> str | None:
    return None if value is None else value.name


def _listed(names: Iterable[str]) -> str:
    found = list(names)
    return ", ".join(found[:8]) + (f" and {len(found) - 8} more" if len(found) > 8 else "") or "nothing"


def _reject(what: str) -> NoReturn:
    raise ExportError(
        f"the traced graph {what}",
        hint="use --exporter stepscore, or the versions of optimum-onnx, torch and transformers in "
        "constraints.txt",
    )
