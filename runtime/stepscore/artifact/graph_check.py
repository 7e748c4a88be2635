"""Check the graphs of a pair before anything runs them: operators, inputs, outputs, and places of weights.

A manifest protects against damage, not against whoever writes matching hashes. What ONNX Runtime is given is
therefore compared with what the exporters write: no operator but theirs (no loop, which may never end), the
inputs and outputs of the graph contract, and weights within weights.bin.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from stepscore.artifact import graph_contract as contract
from stepscore.artifact.graph_interface import COMPUTE, Interface, interface, unit_graphs
from stepscore.artifact.manifest import Manifest, Unit
from stepscore.artifact.onnx_graph import Graph, Node, Value
from stepscore.artifact.protobuf import Malformed
from stepscore.enums import Exporter
from stepscore.errors import IntegrityMismatch, ModelInvalid

MICROSOFT = "com.microsoft"
OPSETS = {"": 21, MICROSOFT: 1}
"""Newest version of the operators of each domain that the exporters write."""

_SHARED = frozenset(
    {
        *("Add", "Cast", "Concat", "Div", "Equal", "Expand", "Gather", "GatherND", "Gemm", "Identity"),
        *("LogSoftmax", "MatMul", "Max", "Min", "Mul", "Neg", "Range", "ReduceMin", "Reshape", "Shape"),
        *("Slice", "Squeeze", "Sub", "Unsqueeze", "LessOrEqual"),
    }
)
_BUILT = frozenset(
    {
        *("BitwiseXor", "DequantizeLinear", "If", "Pad", "QuantizeLinear", "ReduceMax"),
        *("Sigmoid", "SimplifiedLayerNormalization", "Softmax", "Transpose"),
    }
)
_BUILT_MICROSOFT = frozenset(
    {
        *("GatherBlockQuantized", "GroupQueryAttention", "MatMulIntegerToFloat", "MatMulNBits"),
        *("QuickGelu", "RotaryEmbedding", "SkipSimplifiedLayerNormalization"),
    }
)
_TRACED = frozenset(
    {
        *("And", "Constant", "ConstantOfShape", "Cos", "Flatten", "IsNaN", "Pow", "ReduceMean"),
        *("Sigmoid", "Sin", "Softmax", "Sqrt", "Transpose", "Where"),
    }
)
OPERATORS: Mapping[Exporter, Mapping[str, frozenset[str]]] = {
    Exporter.STEPSCORE: {"": _SHARED | _BUILT, MICROSOFT: _BUILT_MICROSOFT},
    Exporter.OPTIMUM: {"": _SHARED | _TRACED},
}
"""Operators that the graphs of each exporter consist of, by domain; an export runs its pair, and so notices
another one."""


def check_graphs(folder: Path, manifest: Manifest, files: Iterable[str] | None = None) -> None:
    """Check graph files of each unit, all by default; raise ModelInvalid for the first at fault."""
    for unit in manifest.units:
        for file in all_graphs(manifest, unit) if files is None else files:
            name = f"{unit.folder}/{file}"
            try:
                data = (folder / name).read_bytes()
            except OSError as error:
                raise IntegrityMismatch(f"{name} cannot be read: {error.strerror}") from None
            check_graph(data, manifest, unit, file)


def all_graphs(manifest: Manifest, unit: Unit) -> Iterator[str]:
    """Yield the names of the graph files of a unit, those over unsigned weights included."""
    for name in unit_graphs(manifest, unit):
        yield name
        if manifest.has_int8_activations and name != contract.EMBED:
            yield contract.unsigned_file(name)


def check_graph(data: bytes, manifest: Manifest, unit: Unit, file: str) -> None:
    """Raise ModelInvalid unless the bytes of a graph file are such as the manifest's exporter writes."""
    try:
        graph = Graph.decode(data)
        _check_operators(graph, OPERATORS[manifest.exporter])
        keeps_rows = any(value.name == contract.KEPT_INDEX for value in graph.inputs)
        inputs, outputs = interface(manifest, unit, file.replace(".u8.onnx", ".onnx"), keeps_rows=keeps_rows)
        _check_values("input", graph.inputs, inputs)
        _check_values("output", graph.outputs, outputs)
        _check_external(graph, manifest.files[f"{unit.folder}/{contract.WEIGHTS}"].size)
    except Malformed as fault:
        raise ModelInvalid(
            f"{unit.folder}/{file} is not a graph that `stepscore export` writes: {fault}",
            hint="export the pair from checkpoints you trust; do not run this one",
        ) from None


def _check_operators(graph: Graph, operators: Mapping[str, frozenset[str]]) -> None:
    for domain, version in graph.opsets.items():
        if domain not in operators or not 0 < version <= OPSETS[domain]:
            raise Malformed(f"it uses opset {version} of the domain {domain!r}")
    for node in _all_nodes(graph.nodes):
        if node.op_type not in operators.get(node.domain, ()):
            of = f" of the domain {node.domain[:80]!r}" if node.domain else ""
            raise Malformed(f"it has the operator {node.op_type[:80]!r}{of}")
        _check_names(node.names)


def _all_nodes(nodes: Iterable[Node]) -> Iterator[Node]:
    for node in nodes:
        yield node
        yield from _all_nodes(node.branches)


def _check_names(names: Iterable[str]) -> None:
    """Refuse names that ONNX Runtime's own log would send to a terminal as control characters."""
    for name in names:
        if not name.isprintable():
            raise Malformed(f"it has the name {name[:80]!r}")


def _check_values(kind: str, found: tuple[Value, ...], expected: Interface) -> None:
    names = [value.name for value in found]
    if sorted(names) != sorted(expected):
        wrong = sorted(set(names) ^ set(expected)) or [name for name in names if names.count(name) > 1]
        raise Malformed(f"its {kind} {wrong[0][:80]!r} is {_state(wrong[0], names, expected)}")
    for value in found:
        wanted = expected[value.name]
        if value.element_type not in wanted.element_types:
            raise Malformed(f"its {kind} {value.name} has the element type {value.element_type}")
        if value.shape != wanted.shape:
            axes = ", ".join(str(axis)[:20] for axis in value.shape[:8])
            raise Malformed(f"its {kind} {value.name} is [{axes}], expected {list(wanted.shape)}")
    of_compute = {value.element_type for value in found if expected[value.name].element_types == COMPUTE}
    if len(of_compute) > 1:
        raise Malformed(f"its {kind}s have different floating-point types")


def _state(name: str, names: Sequence[str], expected: Interface) -> str:
    if name not in names:
        return "missing"
    return "declared twice" if name in expected else "not expected"


def _check_external(graph: Graph, size: int) -> None:
    for tensor in graph.external:
        _check_names([tensor.name])
        location, offset, length = (tensor.entries.get(key) for key in ("location", "offset", "length"))
        if location != contract.WEIGHTS or set(tensor.entries) != {"location", "offset", "length"}:
            raise Malformed(f"the weight {tensor.name[:80]!r} is not in {contract.WEIGHTS}")
        ends = [text for text in (offset, length) if text is not None and re.fullmatch("[0-9]{1,18}", text)]
        if len(ends) < 2 or sum(map(int, ends)) > size:
            raise Malformed(f"the weight {tensor.name[:80]!r} is not within {contract.WEIGHTS}")
