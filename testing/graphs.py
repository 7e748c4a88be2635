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


def assert_the_body_is_its_layers(pair: Path, model: str) -> None:
    """Compare operators and attributes one by one, but for the question of length: a graph asks it once."""

    def steps(name: str) -> list[tuple[str, str]]:
        return [
            (node.op_type, "".join(sorted(map(str, node.attribute))) if node.op_type != "If" else "")
            for node in nodes(load(pair, name, model).graph)
            if node.op_type != "LessOrEqual"
        ]

    layers = [step for name in NAMES if name.startswith("layer") for step in steps(name)]
    assert steps("body.onnx") == layers
