"""Exported graphs as onnx reads them, their weights left in the weight file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import onnx
from testing.checkpoints import TINY

from stepscore.artifact.graph_contract import graph_files

LAYERS = TINY.num_hidden_layers
NAMES = graph_files(LAYERS, TINY.vocab_size)
"""The graph files of a tiny pair's unit."""


def load(pair: Path, name: str, model: str = "policy") -> onnx.ModelProto:
    """Read one graph of the unit `model`."""
    return onnx.load(pair / model / name, load_external_data=False)


def external(graph: onnx.ModelProto) -> dict[str, dict[str, str]]:
    """Return where each initializer outside the graph file is."""
    return {
        tensor.name: {entry.key: entry.value for entry in tensor.external_data}
        for tensor in graph.graph.initializer
        if tensor.data_location == onnx.TensorProto.EXTERNAL
    }


def nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Yield every node, those of both branches of an If behind it."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from nodes(attribute.g)


def operators(graph: onnx.ModelProto) -> Counter[str]:
    """Count the nodes of a graph by operator."""
    return Counter(node.op_type for node in nodes(graph.graph))


def without_few_queries(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a graph without its second view, that of batches with few queries, as if no batch had it."""
    graph = onnx.ModelProto()
    graph.CopyFrom(model)
    made_by = {name: node for node in graph.graph.node for name in node.output}
    for node in [node for node in graph.graph.node if node.op_type == "If"]:
        if made_by[node.input[0]].op_type == "Cast":  # of the number of its sequences
            (otherwise,) = (each.g.node for each in node.attribute if each.name == "else_branch")
            (gather,) = otherwise
            gather.output[:], gather.name = node.output, node.name
            node.CopyFrom(gather)
    remove_values(graph.graph, "few")
    return graph


def remove_values(graph: onnx.GraphProto, prefix: str) -> None:
    """Remove inputs and outputs whose name begins so, and all that nothing reads then, in place."""
    for values in (graph.input, graph.output):
        for value in [each for each in values if each.name.startswith(prefix)]:
            values.remove(value)
    unread = list(graph.node)
    while unread:
        read = {name for node in nodes(graph) for name in node.input} | {each.name for each in graph.output}
        unread = [node for node in graph.node if not read.intersection(node.output)]
        for node in unread:
            graph.node.remove(node)


def assert_the_body_is_its_layers(pair: Path, model: str) -> None:
    """Compare operators and attributes one by one, but for the question of length: a graph asks it once."""

    def steps(name: str) -> list[tuple[str, str]]:
        return [
            (node.op_type, "".join(sorted(map(str, node.attribute))) if node.op_type != "If" else "")
            for node in nodes(without_few_queries(load(pair, name, model)).graph)
            if node.op_type != "LessOrEqual"
        ]

    layers = [step for name in NAMES if name.startswith("layer") for step in steps(name)]
    assert steps("body.onnx") == layers
