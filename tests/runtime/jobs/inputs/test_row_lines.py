"""Columns of a table become JSON values without loss, or are errors that name their column."""

from __future__ import annotations

import datetime
import io
import json
import struct
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import ipc
from testing.hypothesis_profiles import examples

from stepscore.errors import InputUnreadable
from stepscore.jobs.inputs.opening import open_input
from stepscore.jobs.inputs.row_lines import ROWS, lines_of, validated
from stepscore.jobs.source import parsed_lines


def rows(**columns: Any) -> list[dict[str, Any]]:
    table = pa.table(columns)
    return [json.loads(line) for line in lines_of(map(validated, table.to_batches()), table.schema, "FILE")]


def test_a_null_is_not_there_but_stays_in_a_list() -> None:
    inner = pa.array([{"a": 1, "b": None}, None])
    given = rows(x=pa.array([None, 1]), s=inner, steps=[["a", None], None], n=pa.nulls(2))
    assert given == [{"s": {"a": 1}, "steps": ["a", None]}, {"x": 1}]


INSTANT = datetime.datetime(2024, 1, 2, 3, 4, 5, 6)
VALUES: list[tuple[Any, Any]] = [
    (pa.array([2**63 - 1]), 2**63 - 1),
    (pa.array([2**64 - 1], pa.uint64()), 2**64 - 1),
    (pa.array([0.1]), 0.1),
    (pa.array([0.1], pa.float32()), 0.1),
    (pa.array([[0.1, None]], pa.list_(pa.float32())), [0.1, None]),
    (pa.array([[0.5, 0.1]], pa.list_(pa.float32(), 2)), [0.5, 0.1]),
    (pa.array(np.array([0.5], np.float16)), 0.5),
    (pa.array([True]), True),
    (pa.array([Decimal("1.50")]), "1.50"),
    (pa.array([datetime.date(2024, 1, 2)]), "2024-01-02"),
    (pa.array([datetime.time(1, 2, 3)]), "01:02:03.000000"),
    (pa.array([INSTANT], pa.timestamp("ns")), "2024-01-02 03:04:05.000006000"),
    (pa.array([INSTANT], pa.timestamp("us", "UTC")), "2024-01-02 03:04:05.000006Z"),
    (pa.array(["a"]).dictionary_encode(), "a"),
    (pa.array(["ü\n"], pa.large_string()), "ü\n"),
    (pa.array(["a"], pa.string_view()), "a"),
    (pa.array([[["a"], []]]), [["a"], []]),
    (pa.array([["a"]], pa.large_list(pa.dictionary(pa.int8(), pa.string()))), ["a"]),
    (
        pa.StructArray.from_arrays([pa.array(["a"]).dictionary_encode(), pa.array(["b"])], ["x", "y"]),
        {"x": "a", "y": "b"},
    ),
    (pa.array([{"day": datetime.date(2024, 1, 2), "f": [0.1]}]), {"day": "2024-01-02", "f": [0.1]}),
    (pa.array([[("k", 0.1)]], pa.map_(pa.string(), pa.float32())), {"k": 0.1}),
    (pa.ExtensionArray.from_storage(pa.bool8(), pa.array([1], pa.int8())), 1),
]


@pytest.mark.parametrize(("column", "value"), VALUES, ids=[str(column.type) for column, _ in VALUES])
def test_a_value_is_the_same_in_json(column: Any, value: Any) -> None:
    assert rows(x=column) == [{"x": value}]


@settings(examples(100))
@given(st.floats(width=32, allow_nan=False, allow_infinity=False))
def test_a_float32_is_the_shortest_decimal_that_reads_back_as_the_same(number: float) -> None:
    ((row),) = rows(x=pa.array([number], pa.float32()))
    assert struct.pack("f", row["x"]) == struct.pack("f", number)
    assert row["x"] == float(str(np.float32(number)))


REJECTED = [
    (pa.array([b"x"]), "column `x` of FILE is binary"),
    (pa.array([[{"image": b"x"}]]), "column `x.image` of FILE is binary"),
    (pa.array([datetime.timedelta(1)]), "column `x` of FILE is duration"),
    (pa.array([[(1, 2)]], pa.map_(pa.int64(), pa.int64())), "column `x` of FILE is map"),
    (pa.array([[1]], pa.list_view(pa.int64())), "column `x` of FILE is list_view"),
    (pa.StructArray.from_arrays([pa.array([1]), pa.array([2])], ["a", "a"]), "several columns `x.a`"),
]


@pytest.mark.parametrize(("column", "message"), REJECTED, ids=[str(column.type) for column, _ in REJECTED])
def test_a_column_that_json_cannot_hold_is_named(column: Any, message: str) -> None:
    with pytest.raises(InputUnreadable, match=message):
        rows(x=column)


def test_columns_of_one_name_are_rejected() -> None:
    table = pa.Table.from_arrays([pa.array([1]), pa.array([2])], ["x", "x"])
    with pytest.raises(InputUnreadable, match="several columns `x`"):
        lines_of(iter(()), table.schema, "FILE")


def messages(table: pa.Table, tmp_path: Path) -> list[str]:
    out = io.BytesIO()
    pq.write_table(table, out)
    (tmp_path / "in").write_bytes(out.getvalue())
    with open_input(tmp_path / "in") as lines:
        return [getattr(line.record, "message", "") for line in parsed_lines(lines)]


BAD_TEXT = pa.Array.from_buffers(pa.string(), 3, pa.array([b"a", b"\xff", b"c"]).buffers())


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (pa.array([1.0, float("nan"), 2.0]), "`x` holds NaN"),
        (pa.array([[1.0], [float("inf")], []], pa.list_(pa.float32())), "`x` holds NaN or Infinity"),
        (BAD_TEXT, "`x` holds the lone surrogate"),
        (
            pa.ListArray.from_arrays([0, 1, 2, 3], BAD_TEXT),
            "`x` holds the lone surrogate",
        ),
        (pa.StructArray.from_arrays([BAD_TEXT], ["y"]), "`x` holds the lone surrogate"),
        (
            pa.MapArray.from_arrays([0, 0, 2, 3], pa.array(["k", "k", "k"]), pa.array([1, 2, 3])),
            "duplicate key 'k'",
        ),
    ],
    ids=["NaN", "infinity", "text", "texts", "struct", "map"],
)
def test_a_value_that_json_cannot_hold_is_an_error_of_its_row(
    tmp_path: Path, column: Any, message: str
) -> None:
    table = pa.table({"problem": ["p"] * 3, "steps": [["1"], ["2"], ["3"]], "x": column})
    first, second, third = messages(table, tmp_path)
    assert (first, third) == ("", "")
    assert message in second


def test_a_row_that_is_too_large_is_one_error(tmp_path: Path) -> None:
    table = pa.table({"problem": ["p", "x" * (5 << 20), "q"], "steps": [["1"]] * 3})
    assert [message[:22] for message in messages(table, tmp_path)] == ["", "the line has more than", ""]


def test_batches_longer_than_what_is_held_keep_their_order() -> None:
    count = 3 * ROWS + 1
    assert [row["x"] for row in rows(x=list(range(count)))] == list(range(count))


def test_offsets_that_point_outside_are_an_error_and_do_not_end_the_process(tmp_path: Path) -> None:
    """Arrow reads IPC without a check; C++ would abort."""
    table = pa.table({"problem": [f"p{at}" for at in range(64)], "steps": [["s"]] * 64})
    out = io.BytesIO()
    with ipc.new_stream(out, table.schema) as writer:
        writer.write_table(table)
    offsets = struct.pack("<3i", 2, 4, 6)
    assert offsets in out.getvalue()
    (tmp_path / "in").write_bytes(out.getvalue().replace(offsets, struct.pack("<3i", 2, -9, 6)))
    with open_input(tmp_path / "in") as lines, pytest.raises(InputUnreadable, match="Offset invariant"):
        parsed_lines(lines)
