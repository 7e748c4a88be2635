"""A graph under construction: one initializer a name, and never another's."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from stepscore_export.graphs.builder import FLOAT, GraphBuilder
from stepscore_export.graphs.shape import Shape
from stepscore_export.weights.weight_file import TensorRef

SHAPE = Shape(
    models=("policy",),
    rms_norm_eps=(1e-6,),
    hidden_size=8,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=4,
    compute=FLOAT,
    on_cpu=True,
)
REF = TensorRef("norm", FLOAT, (8,), offset=4096)
HALF = TensorRef("norm", ir.DataType.FLOAT16, (8,), offset=4096)


@pytest.fixture
def g() -> GraphBuilder:
    return GraphBuilder("body", SHAPE)


def test_equal_constants_of_one_name_are_one_initializer(g: GraphBuilder) -> None:
    assert g.constant("last", -1) is g.constant("last", -1)
    assert g.scalar("whole", 1.0, FLOAT) is g.scalar("whole", 1.0, FLOAT)
    assert len(g.finish().graph.initializers) == 2


def test_constants_keep_value_type_and_rank(g: GraphBuilder) -> None:
    vector, scalar = (
        g.constant("flat", -1, 8).const_value,
        g.scalar("zero", 128, ir.DataType.UINT8).const_value,
    )
    assert vector is not None
    assert scalar is not None
    np.testing.assert_array_equal(vector.numpy(), np.array([-1, 8], np.int64))
    assert (scalar.dtype, scalar.numpy().shape, int(scalar.numpy())) == (ir.DataType.UINT8, (), 128)


def test_a_name_cannot_have_two_values(g: GraphBuilder) -> None:
    g.constant("last", -1)
    with pytest.raises(ValueError, match="body has two different initializers named last"):
        g.constant("last", 1)
    with pytest.raises(ValueError, match="two different initializers named last"):
        g.constant("last", -1, -1)


def test_a_name_cannot_have_two_types_or_ranks(g: GraphBuilder) -> None:
    g.constant("one", 1)
    with pytest.raises(ValueError, match="two different initializers named one"):
        g.constant("one", 1, dtype=FLOAT)
    with pytest.raises(ValueError, match="two different initializers named one"):
        g.scalar("one", 1)


def test_the_same_bytes_are_one_initializer(g: GraphBuilder) -> None:
    assert g.weight(REF) is g.weight(REF)
    assert len(g.finish().graph.initializers) == 1


@pytest.mark.parametrize(
    "other",
    [replace(REF, offset=8192), replace(REF, shape=(4,)), HALF],
    ids=["offset", "length", "type"],
)
def test_a_name_cannot_stand_for_other_bytes(g: GraphBuilder, other: TensorRef) -> None:
    g.weight(REF)
    with pytest.raises(ValueError, match="body has two different initializers named norm"):
        g.weight(other)


def test_a_weight_of_another_type_is_cast_once(g: GraphBuilder) -> None:
    assert g.weight(HALF) is g.weight(HALF)
    assert g.weight(HALF, as_stored=True).dtype == ir.DataType.FLOAT16
    assert [node.op_type for node in g.finish().graph] == ["Cast"]


# If


def chosen(g: GraphBuilder) -> ir.Model:
    """Two choices on one condition: [2 x, x * x] where it holds, [x + x + x, x - x] where not."""
    x, condition = g.input("x", FLOAT, 2), g.input("condition", ir.DataType.BOOL)
    two = g.constant("two", 2.0, dtype=FLOAT)
    first = g.choose(condition, lambda b: b.op("Mul", x, two), lambda b: b.op("Add", b.op("Add", x, x), x))
    second = g.choose(condition, lambda b: b.op("Mul", x, x), lambda b: b.op("Sub", x, x))
    return g.finish((first, "first", FLOAT, (2,)), (second, "second", FLOAT, (2,)))


@pytest.mark.parametrize(
    ("condition", "expected"), [(True, [[6, -10], [9, 25]]), (False, [[9, -15], [0, 0]])]
)
def test_if_runs_one_branch_on_values_of_the_graph(
    g: GraphBuilder, condition: bool, expected: list[list[float]]
) -> None:
    model = ir.to_proto(chosen(g)).SerializeToString()
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    found = session.run(None, {"x": np.array([3, -5], np.float32), "condition": np.array(condition)})
    np.testing.assert_array_equal(found, np.array(expected, np.float32))


def test_branch_names_are_local_to_the_branch(g: GraphBuilder) -> None:
    proto = ir.to_proto(chosen(g)).graph
    outside = {name for node in proto.node for name in node.output}
    for node in proto.node:
        branches = [each.g for each in node.attribute]
        assert [len(branch.output) for branch in branches] == [1, 1]
        inside = [name for branch in branches for each in branch.node for name in each.output]
        assert len(set(inside)) == len(inside)
        assert outside.isdisjoint(inside)
