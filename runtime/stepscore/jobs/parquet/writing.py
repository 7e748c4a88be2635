"""Write scored lines as a Parquet file: read once for the types of its columns, once for their values."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from stepscore.errors import OutputUnwritable
from stepscore.jobs.inputs.row_lines import HEADER, JSON_TEXT
from stepscore.jobs.parquet.column_types import ColumnType, ListOf, ObjectOf, Plain, merged, type_of

ROWS, GROUP_BYTES = 4096, 16 << 20
"""A row group has at most so many rows, and about so many bytes of lines."""

_LIST_OF_NUMBERS = pa.list_(pa.float64())
_LIST_OF_INTEGERS = pa.list_(pa.int64())
_SCORED = {
    "cumulative_rewards": _LIST_OF_NUMBERS,
    "step_rewards": _LIST_OF_NUMBERS,
    "outcome_reward": pa.float64(),
    "num_tokens": pa.int64(),
    "response_start": pa.int64(),
    "first_summed": pa.int64(),
    "step_ends": _LIST_OF_INTEGERS,
    "special_text": pa.bool_(),
    "token_ids": _LIST_OF_INTEGERS,
    "token_texts": pa.list_(pa.string()),
    "policy_logprobs": pa.list_(pa.float32()),
    "reference_logprobs": pa.list_(pa.float32()),
    "token_rewards": pa.list_(pa.float32()),
    "error": pa.struct([("code", pa.string()), ("message", pa.string())]),
}
"""Columns that scoring adds, whose types do not depend on the lines."""
_ALWAYS = ("cumulative_rewards", "step_rewards", "outcome_reward", "num_tokens", "step_ends", "error")

_RAW = msgspec.json.Decoder(dict[str, msgspec.Raw])


def write_parquet(lines: Path, target: Path, header: bytes, facts: Mapping[bytes, bytes]) -> None:
    """Write the lines of a file, behind its header, as a Parquet file, atomically; raise OutputUnwritable.

    Its metadata has the header and `facts`. What is half written has another name, and is removed.
    """
    target = target.resolve()  # a symbolic link stays one
    staged = target.with_name(f".{target.name}.partial")
    try:
        schema = _schema(lines, header, facts)
        with pq.ParquetWriter(staged, schema, compression="zstd") as writer:
            for group in _groups(answers(lines, header)):
                writer.write_table(_table(group, schema))
        with staged.open("rb") as file:
            os.fsync(file.fileno())
        staged.replace(target)
    except OSError as error:
        raise OutputUnwritable(
            f"cannot write {target}: {error.strerror or error}",
            hint="free space and run the same command again: the records are kept",
        ) from None
    finally:
        staged.unlink(missing_ok=True)


def answers(lines: Path, header: bytes) -> Iterator[bytes]:
    """Yield the lines of a file behind its header."""
    with lines.open("rb") as file:
        for line in file:
            if line != header:
                yield line


def _schema(lines: Path, header: bytes, facts: Mapping[bytes, bytes]) -> Any:
    found: dict[str, ColumnType] = {}
    for line in answers(lines, header):
        for name, raw in _RAW.decode(line).items():
            if found.get(name) is not Plain.JSON and name not in _SCORED:
                found[name] = merged(found.get(name, Plain.NULL), type_of(json.loads(bytes(raw))))
            else:
                found.setdefault(name, Plain.NULL)
    names = dict.fromkeys([*found, *(name for name in _ALWAYS if name not in found)])
    fields = [_field(name, found.get(name, Plain.NULL)) for name in names]
    return pa.schema(fields, metadata={HEADER: header, **facts})


def _field(name: str, kind: ColumnType) -> Any:
    if name in _SCORED:
        return pa.field(name, _SCORED[name])
    if name == "id":  # 7 and "7" are the same id
        return pa.field(name, pa.int64() if kind in (Plain.SMALL_INTEGER, Plain.INTEGER) else pa.string())
    return pa.field(name, _arrow(kind), metadata={JSON_TEXT: "yes"} if kind is Plain.JSON else None)


def _arrow(kind: ColumnType) -> Any:
    if isinstance(kind, ListOf):
        return pa.list_(_arrow(kind.value))
    if isinstance(kind, ObjectOf):
        return pa.struct([(name, _arrow(each)) for name, each in kind.fields.items()])
    types = {
        Plain.BOOLEAN: pa.bool_(),
        Plain.SMALL_INTEGER: pa.int64(),
        Plain.INTEGER: pa.int64(),
        Plain.NUMBER: pa.float64(),
    }
    return types.get(kind, pa.string())


def _groups(lines: Iterable[bytes]) -> Iterator[list[bytes]]:
    group: list[bytes] = []
    held = 0
    for line in lines:
        group.append(line)
        held += len(line)
        if len(group) == ROWS or held >= GROUP_BYTES:
            yield group
            group, held = [], 0
    if group:
        yield group


def _table(lines: list[bytes], schema: Any) -> Any:
    rows = [_RAW.decode(line) for line in lines]
    columns = [pa.array([_value(row.get(one.name), one) for row in rows], one.type) for one in schema]
    return pa.Table.from_arrays(columns, schema=schema)


def _value(raw: msgspec.Raw | None, column: Any) -> Any:
    if raw is None:
        return None
    if column.metadata and JSON_TEXT in column.metadata:
        text = bytes(raw).decode()
        return None if text == "null" else text
    value = json.loads(bytes(raw))
    return str(value) if column.name == "id" and pa.types.is_string(column.type) else value
