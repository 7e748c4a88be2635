"""Lines become columns and are the same lines when they are read again."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from testing.hypothesis_profiles import examples

from stepscore.errors import OutputUnwritable
from stepscore.jobs.inputs.opening import open_input
from stepscore.jobs.jsonl import read_lines
from stepscore.jobs.parquet import writing
from stepscore.jobs.parquet.column_types import (
    MOST_DEPTH,
    MOST_FIELDS,
    ListOf,
    ObjectOf,
    Plain,
    merged,
    type_of,
)
from stepscore.jobs.parquet.writing import write_parquet

HEADER = b'{"stepscore":{"schema_version":1}}\n'


def written(lines: list[str], folder: Path) -> Path:
    source, target = folder / "lines", folder / "out.parquet"
    source.write_bytes(HEADER + "".join(line + "\n" for line in lines).encode())
    write_parquet(source, target, HEADER, {b"x": b"y"})
    return target


def read(path: Path) -> list[str]:
    with open_input(path) as lines:
        header, *rows = read_lines(lines)
    assert header == HEADER.rstrip()
    return [row.decode() for row in rows]


def column(values: list[Any], folder: Path) -> tuple[Any, list[Any]]:
    """The type of a column of these values, and what they are when they are read again."""
    path = written([json.dumps({"x": value}) for value in values], folder)
    return pq.read_schema(path).field("x").type, [json.loads(row).get("x") for row in read(path)]


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
OBJECTS = st.dictionaries(st.sampled_from(["a", "b", "", "a.b", "é\0"]), VALUES)


@settings(examples(50), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(OBJECTS, min_size=1, max_size=5))
def test_any_fields_are_the_same_when_they_are_read_again_but_for_null(
    tmp_path: Path, rows: list[dict[str, Any]]
) -> None:
    found = [json.loads(row) for row in read(written([json.dumps(row) for row in rows], tmp_path))]
    expected = [{name: value for name, value in row.items() if value is not None} for row in rows]
    assert found == expected
    assert json.dumps(found).count("true") == json.dumps(expected).count("true")  # True == 1


TYPES: list[tuple[list[Any], Any]] = [
    ([1, None, 2], pa.int64()),
    ([1, 2.5], pa.float64()),
    ([2**53 + 1, 0.5], pa.string()),
    ([2**63], pa.string()),
    (["a", None], pa.string()),
    ([1, "1"], pa.string()),
    ([True, 1], pa.string()),
    ([["a"], []], pa.list_(pa.field("element", pa.string()))),
    (
        [{"role": "user", "n": 1}, {"role": "assistant"}],
        pa.struct([("role", pa.string()), ("n", pa.int64())]),
    ),
    ([{"a": None}, {"a": 1}], pa.string()),
    ([{}], pa.string()),
]


@pytest.mark.parametrize(("values", "kind"), TYPES, ids=[str(values) for values, _ in TYPES])
def test_a_field_of_one_type_is_a_column_of_it_and_any_other_is_json_text(
    tmp_path: Path, values: list[Any], kind: Any
) -> None:
    assert column(values, tmp_path) == (kind, values)


def test_a_number_that_no_float_holds_stays_as_it_is_spelled(tmp_path: Path) -> None:
    lines = ['{"x": 1e999, "y": 1}', '{"x": 123456789012345678901234567890, "y": 2}']
    assert read(written(lines, tmp_path)) == lines


def test_types_with_many_fields_or_great_depth_are_json() -> None:
    wide = {f"f{at}": 1 for at in range(MOST_FIELDS + 1)}
    assert type_of(wide) is Plain.JSON
    assert merged(type_of({"a": 1}), type_of(dict(list(wide.items())[:MOST_FIELDS]))) is Plain.JSON
    deep: Any = 1
    for _ in range(MOST_DEPTH + 1):
        deep = [deep]
    assert type_of(deep) is Plain.JSON
    assert type_of([{"a": 1}]) == ListOf(ObjectOf({"a": Plain.SMALL_INTEGER}))


def test_rewards_keep_every_bit_and_logprobs_are_float32(tmp_path: Path) -> None:
    rewards, logprob = [0.1, -1 / 3, 1e-300], struct.unpack("f", struct.pack("f", -0.1))[0]
    line = {"id": 7, "cumulative_rewards": rewards, "policy_logprobs": [float("-0.1")], "num_tokens": 3}
    path = written([json.dumps(line)], tmp_path)
    (row,) = pq.read_table(path).to_pylist()
    assert row["cumulative_rewards"] == rewards
    assert row["policy_logprobs"] == [logprob]
    assert json.loads(read(path)[0]) == line


def test_ids_of_both_kinds_are_text_and_an_error_is_a_struct(tmp_path: Path) -> None:
    error = {"code": "no_steps", "message": "m"}
    lines = [{"id": 7, "step_rewards": [0.5]}, {"id": "b", "error": error}]
    path = written([json.dumps(line) for line in lines], tmp_path)
    assert [json.loads(row) for row in read(path)] == [lines[0] | {"id": "7"}, lines[1]]
    assert pq.read_table(path)["error"].to_pylist() == [None, error]
    assert pq.read_schema(path).metadata[b"x"] == b"y"


def test_an_output_without_lines_has_the_columns_of_scoring(tmp_path: Path) -> None:
    path = written([], tmp_path)
    assert read(path) == []
    assert {"step_rewards", "outcome_reward", "error"} <= set(pq.read_schema(path).names)


def test_row_groups_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "ROWS", 4)
    lines = [json.dumps({"x": at}) for at in range(10)]
    path = written(lines, tmp_path)
    assert pq.ParquetFile(path).metadata.num_row_groups == 3
    assert read(path) == lines


def test_a_file_that_cannot_be_written_leaves_nothing_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pq.ParquetWriter, "write_table", full)
    with pytest.raises(OutputUnwritable, match="No space left"):
        written(['{"x": 1}'], tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["lines"]
