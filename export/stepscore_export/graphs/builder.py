"""Build one ONNX graph: nodes, inputs, and initializers that refer to bytes of the weight file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import onnx_ir as ir
from onnx_ir.tape import Tape

from stepscore.artifact.graph_contract import WEIGHTS
from stepscore_export.graphs.shape import Shape
from stepscore_export.weights.weight_file import TensorRef

OPSET = 21
IR_VERSION = 10
MICROSOFT = "com.microsoft"
INT64, INT32, FLOAT = ir.DataType.INT64, ir.DataType.INT32, ir.DataType.FLOAT

Output = tuple[ir.Value, str, ir.DataType, tuple[int | str, ...]]
"""An output of a graph: value, name, type and shape."""


class GraphBuilder:
    """Collect the nodes of one graph; values are `onnx_ir.Value`."""

    def __init__(self, name: str, shape: Shape) -> None:
        self.name = name
        self.shape = shape
        self.compute = shape.compute
        self.tape = Tape()
        self.inputs: list[ir.Value] = []
        self.intermediate_outputs: dict[str, ir.Value] = {}
        """Inputs of the weight matrices by name; calibration reads them as additional outputs."""
        self._initializers: dict[str, ir.Value] = {}
        self._converted: dict[str, ir.Value] = {}

    def input(self, name: str, dtype: ir.DataType, *shape: int | str) -> ir.Value:
        """Declare an input; a dimension is a number, or a name if it is symbolic."""
        value = ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape))
        self.inputs.append(value)
        return value

    def op(
        self,
        kind: str,
        *inputs: ir.Value | None,
        domain: str = "",
        name: str | None = None,
        **attributes: object,
    ) -> ir.Value:
        """Add a node with one output."""
        value: ir.Value = self.tape.op(kind, list(inputs), attributes, domain=domain)
        if name is not None:
            value.name = name
        return value

    def ops(
        self, kind: str, outputs: int, *inputs: ir.Value | None, **attributes: object
    ) -> Sequence[ir.Value]:
        """Add a com.microsoft node with several outputs."""
        return self.tape.op_multi_out(
            kind,
            list(inputs),
            attributes,
            num_outputs=outputs,
            domain=MICROSOFT,
        )

    def choose(
        self,
        condition: ir.Value,
        then: Callable[[GraphBuilder], ir.Value],
        otherwise: Callable[[GraphBuilder], ir.Value],
    ) -> ir.Value:
        """Add an If node with one output; its branches may use any value of this graph, including weights."""
        return self.op(
            "If",
            condition,
            then_branch=self._branch("then", then),
            else_branch=self._branch("otherwise", otherwise),
        )

    def _branch(self, name: str, build: Callable[[GraphBuilder], ir.Value]) -> ir.Graph:
        branch = GraphBuilder(name, self.shape)
        result = build(branch)
        for index, value in enumerate(value for node in branch.tape.nodes for value in node.outputs):
            value.name = f"{name}_{index}"  # unique: the enclosing graph names no value like this
        return ir.Graph([], [result], nodes=branch.tape.nodes, name=name)

    def weight(self, ref: TensorRef, *, as_stored: bool = False) -> ir.Value:
        """Return the initializer that refers to these bytes of the weight file, in the compute type.

        If the storage type differs, add a Cast, which ONNX Runtime constant-folds when it loads the graph.
        `as_stored` keeps the storage type.
        """
        tensor = ir.ExternalTensor(
            WEIGHTS, ref.offset, ref.num_bytes, ref.dtype, shape=ir.Shape(ref.shape), name=ref.name
        )
        stored = self._initializer(tensor)
        if as_stored or ref.dtype == self.compute or ref.dtype.is_integer():
            return stored
        return self._once(ref, lambda: self.op("Cast", stored, to=self.compute.value))

    def unsigned_weight(self, ref: TensorRef) -> ir.Value:
        """Return int8 weights as uint8, each larger by 128: the same bytes with the sign bit flipped.

        ONNX Runtime constant-folds the conversion when it loads the graph.
        """
        stored = self.weight(replace(ref, dtype=ir.DataType.UINT8))
        sign = self.scalar("sign_bit", 128, ir.DataType.UINT8)
        return self._once(ref, lambda: self.op("BitwiseXor", stored, sign))

    def _once(self, ref: TensorRef, convert: Callable[[], ir.Value]) -> ir.Value:
        if ref.name not in self._converted:
            self._converted[ref.name] = convert()
        return self._converted[ref.name]

    def constant(self, name: str, *values: float, dtype: ir.DataType = INT64) -> ir.Value:
        """Return a small 1-D initializer that is stored in the graph itself."""
        return self._initializer(ir.tensor(values, dtype=dtype, name=name))

    def scalar(self, name: str, value: float, dtype: ir.DataType = INT64) -> ir.Value:
        """Return a 0-D initializer."""
        return self._initializer(ir.tensor(value, dtype=dtype, name=name))

    def cast(self, value: ir.Value, source: ir.DataType, target: ir.DataType) -> ir.Value:
        """Add a Cast if the types differ."""
        return value if source == target else self.op("Cast", value, to=target.value)

    def _initializer(self, tensor: ir.TensorProtocol) -> ir.Value:
        name = str(tensor.name)
        if name not in self._initializers:
            self._initializers[name] = self.tape.initializer(tensor)
        elif not _same(self._initializers[name].const_value, tensor):
            raise ValueError(f"{self.name} has two different initializers named {name}")
        return self._initializers[name]

    def finish(
        self, *outputs: Output, nodes: Sequence[ir.Node] | None = None, opset: int = OPSET
    ) -> ir.Model:
        """Return the model with these outputs, built from `nodes` (default: the nodes that were added)."""
        for value, name, dtype, shape in outputs:
            value.name = name
            value.type = ir.TensorType(dtype)
            value.shape = ir.Shape(shape)
        graph = ir.Graph(
            self.inputs,
            [value for value, *_ in outputs],
            nodes=self.tape.nodes if nodes is None else nodes,
            initializers=list(self._initializers.values()),
            opset_imports={"": opset},
            name=self.name,
        )
        if any(node.domain == MICROSOFT for node in graph.all_nodes()):
            graph.opset_imports[MICROSOFT] = 1
        return ir.Model(graph, ir_version=IR_VERSION, producer_name="stepscore")


def with_weights_as_inputs(model: ir.Model) -> ir.Model:
    """Turn the initializers that refer to a weight file into inputs of the same names, in place."""
    graph = model.graph
    for name, value in list(graph.initializers.items()):
        if isinstance(value.const_value, ir.ExternalTensor):
            del graph.initializers[name]
            value.const_value = None
            graph.inputs.append(value)
    return model


def _same(one: ir.TensorProtocol | None, other: ir.TensorProtocol) -> bool:
    """Return whether two initializers refer to the same bytes of the weight file or are equal constants."""
    if one is None or (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    if isinstance(one, ir.ExternalTensor) and isinstance(other, ir.ExternalTensor):
        return (one.offset, one.length) == (other.offset, other.length)
    return type(one) is type(other) and np.array_equal(one.numpy(), other.numpy())
