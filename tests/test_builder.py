"""A graph under construction: one initializer a name, and never another's."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest

from stepscore_export.builder import FLOAT, GraphBuilder
from stepscore_export.layout import Shape
from stepscore_export.weights import TensorRef

SHAPE = Shape(
    models=("policy",),
    rms_norm_eps=(1e-6,),
    hidden_size=8,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=4,
    compute=FLOAT,
    fused_silu=True,
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
    with pytest.raises(ValueError, match="body has two initializers of the name last"):
        g.constant("last", 1)
    with pytest.raises(ValueError, match="two initializers of the name last"):
        g.constant("last", -1, -1)


def test_a_name_cannot_have_two_types_or_ranks(g: GraphBuilder) -> None:
    g.constant("one", 1)
    with pytest.raises(ValueError, match="two initializers of the name one"):
        g.constant("one", 1, dtype=FLOAT)
    with pytest.raises(ValueError, match="two initializers of the name one"):
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
    with pytest.raises(ValueError, match="body has two initializers of the name norm"):
        g.weight(other)


def test_a_weight_of_another_type_is_cast_once(g: GraphBuilder) -> None:
    assert g.weight(HALF) is g.weight(HALF)
    assert g.weight(HALF, as_stored=True).dtype == ir.DataType.FLOAT16
    assert [node.op_type for node in g.finish().graph] == ["Cast"]
