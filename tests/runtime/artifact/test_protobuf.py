"""The reader of protobuf agrees with protobuf itself, and rejects what no writer writes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import AttributeProto, TensorProto

from stepscore.artifact.onnx_graph import Graph
from stepscore.artifact.protobuf import Malformed, Message

INTEGERS = st.integers(-(2**63), 2**63 - 1)


@given(st.text(max_size=20), INTEGERS, st.lists(INTEGERS, max_size=5), st.binary(max_size=20))
def test_fields_are_those_that_protobuf_wrote(name: str, i: int, ints: list[int], s: bytes) -> None:
    written = AttributeProto(name=name, i=i, ints=ints, s=s, t=TensorProto(name=name, dims=ints))
    read = Message.decode(memoryview(written.SerializeToString()))
    assert (read.text(1), read.integer(3), read.integers(8)) == (name, i, ints)
    assert bytes(read.fields[4][0]) == s  # type: ignore[arg-type]
    tensor = read.message(5)
    assert tensor is not None
    assert (tensor.text(8), tensor.integers(1)) == (name, ints)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_message_or_malformed(data: bytes) -> None:
    try:
        Graph.decode(data)
    except Malformed:
        return
    raise AssertionError("no random bytes are a graph")


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        (b"\x12\x05hi", "truncated"),
        (b"\x80" * 11, "too long"),
        (b"\x0b", "wire type 3"),
        (b"\x0a", "truncated"),
    ],
)
def test_a_broken_message_says_what_is_broken(data: bytes, fault: str) -> None:
    with pytest.raises(Malformed, match=fault):
        Message.decode(memoryview(data))


def test_a_field_that_occurs_twice_is_refused_where_protobuf_would_merge() -> None:
    with pytest.raises(Malformed, match="occurs 2 times"):
        Message.decode(memoryview(b"\x12\x01a\x12\x01b")).text(2)
