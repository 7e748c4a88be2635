"""Read what is checked of an ONNX graph, without onnx: operators, inputs and outputs, places of weights.

Field numbers are those of onnx.proto3. Parts that no exported graph has, and that could bring other operators
or other files, are rejected: functions, training, sparse tensors, sequences, graphs nested in a branch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from stepscore.artifact.protobuf import Malformed, Message

FLOAT, INT8, INT32, INT64, FLOAT16, BFLOAT16, INT4 = 1, 3, 6, 7, 10, 16, 22
"""Element types of ONNX."""

_EXTERNAL = 1
_MODEL = {"graph": 7, "opset_import": 8, "training_info": 20, "functions": 25, "configuration": 26}
_GRAPH = {"node": 1, "initializer": 5, "input": 11, "output": 12, "sparse_initializer": 15}
_NODE = {"input": 1, "output": 2, "name": 3, "op_type": 4, "attribute": 5, "domain": 7, "overload": 8}
_ATTRIBUTE = {"name": 1, "t": 5, "g": 6, "tensors": 10, "graphs": 11, "ref_attr_name": 21}
_SPARSE_ATTRIBUTES = (22, 23)
_TENSOR = {"name": 8, "external_data": 13, "data_location": 14}


@dataclass(frozen=True, slots=True)
class Value:
    """An input or output: a tensor of an element type, whose axes are numbers or names."""

    name: str
    element_type: int
    shape: tuple[int | str, ...]


@dataclass(frozen=True, slots=True)
class External:
    """A tensor whose bytes are in another file, as the graph spells it: keys such as `location`."""

    name: str
    entries: dict[str, str]


@dataclass(frozen=True, slots=True)
class Node:
    """An operator, and the nodes of its branches where it is an If."""

    domain: str
    op_type: str
    names: tuple[str, ...]
    """Its own name, and those of its inputs and outputs."""
    branches: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Graph:
    """The parts of a graph that are checked."""

    opsets: dict[str, int]
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    nodes: tuple[Node, ...]
    external: tuple[External, ...]

    @classmethod
    def decode(cls, data: bytes) -> Graph:
        """Read the bytes of a graph file; raise Malformed."""
        model = Message.decode(memoryview(data))
        _refuse(model, _MODEL, "training_info", "functions", "configuration")
        graph = model.message(_MODEL["graph"])
        if graph is None:
            raise Malformed("it holds no graph")
        _refuse(graph, _GRAPH, "sparse_initializer")
        opsets = [(each.text(1), each.integer(2)) for each in model.messages(_MODEL["opset_import"])]
        return cls(
            dict(opsets),
            tuple(map(_value, graph.messages(_GRAPH["input"]))),
            tuple(map(_value, graph.messages(_GRAPH["output"]))),
            tuple(_nodes(graph, nested=False)),
            tuple(_external(graph.messages(_GRAPH["initializer"]))),
        )


def _nodes(graph: Message, *, nested: bool) -> Iterator[Node]:
    for node in graph.messages(_GRAPH["node"]):
        _refuse(node, _NODE, "overload")
        branches: list[Node] = []
        for attribute in node.messages(_NODE["attribute"]):
            branches += _branch(attribute, node.text(_NODE["op_type"]), nested=nested)
        names = (
            node.text(_NODE["name"]),
            *node.strings(_NODE["input"]),
            *node.strings(_NODE["output"]),
        )
        yield Node(node.text(_NODE["domain"]), node.text(_NODE["op_type"]), names, tuple(branches))


def _branch(attribute: Message, op_type: str, *, nested: bool) -> Iterator[Node]:
    """Yield the nodes of a graph that is an attribute: a branch of an If, which has nothing but nodes."""
    _refuse(attribute, _ATTRIBUTE, "tensors", "graphs", "ref_attr_name")
    if any(number in attribute.fields for number in _SPARSE_ATTRIBUTES):
        raise Malformed("an attribute is a sparse tensor")
    constant = attribute.message(_ATTRIBUTE["t"])
    if constant is not None and list(_external([constant])):
        raise Malformed("a constant is in another file")
    branch = attribute.message(_ATTRIBUTE["g"])
    if branch is None:
        return
    if op_type != "If":
        raise Malformed(f"a graph is within the operator {op_type[:80]!r}")
    if nested:
        raise Malformed("a branch has branches")
    _refuse(branch, _GRAPH, "initializer", "input", "sparse_initializer")
    yield from _nodes(branch, nested=True)


def _external(tensors: list[Message]) -> Iterator[External]:
    for tensor in tensors:
        entries = tensor.messages(_TENSOR["external_data"])
        if tensor.integer(_TENSOR["data_location"]) == _EXTERNAL or entries:
            pairs = [(entry.text(1), entry.text(2)) for entry in entries]
            if len(dict(pairs)) < len(pairs):
                raise Malformed("a tensor names its place twice")
            yield External(tensor.text(_TENSOR["name"]), dict(pairs))


def _value(info: Message) -> Value:
    kind = info.message(2)
    tensor = None if kind is None else kind.message(1)
    shape = None if tensor is None else tensor.message(2)
    if tensor is None or shape is None:
        raise Malformed(f"{info.text(1)!r} is not a tensor with a shape")
    axes = tuple(axis.integer(1) if 1 in axis.fields else axis.text(2) for axis in shape.messages(1))
    return Value(info.text(1), tensor.integer(1), axes)


def _refuse(message: Message, names: dict[str, int], *refused: str) -> None:
    for name in refused:
        if names[name] in message.fields:
            raise Malformed(f"it has {name.replace('_', ' ')}, which no exported graph has")
