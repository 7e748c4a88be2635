"""Rows of Arrow batches as JSON Lines, to be read as any other input is.

A null column of a row is left out, and so is a null within a struct or a map: there it means "not given". A
null in a list stays. A value that JSON cannot hold (NaN, text that is not UTF-8) is spelled so that parsing
the line rejects it with the name of its field: an error of that row.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.types as kinds

from stepscore.jobs.inputs.json_types import castings, fields_of, list_like

HEADER, JSON_TEXT = b"stepscore", b"stepscore.json"
"""Metadata of what stepscore wrote: of the file, its header line; of a column, that it holds JSON text."""
ROWS = 32
"""Rows that are Python values, and of Parquet also decoded, at a time."""


class RowLines(io.RawIOBase):
    """Lines made of batches as they are read; `num_rows` and `metadata` as far as a file says them."""

    def __init__(
        self,
        lines: Iterator[bytes],
        source: BinaryIO,
        *,
        num_rows: int | None = None,
        metadata: Mapping[bytes, bytes] | None = None,
    ) -> None:
        super().__init__()
        self._lines, self._source = lines, source
        self.num_rows, self.metadata = num_rows, metadata or {}
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        """Return that this is a stream to read."""
        return True

    def fileno(self) -> int:
        """Return the descriptor of the file, which says what kind of file it is."""
        return self._source.fileno()

    def readinto(self, buffer: Any) -> int:
        """Copy the next bytes of the lines into a buffer."""
        if not self._rest:
            self._rest = memoryview(next(self._lines, b""))
        size = min(len(buffer), len(self._rest))
        buffer[:size] = self._rest[:size]
        self._rest = self._rest[size:]
        return size


def lines_of(batches: Iterator[Any], schema: Any, name: str) -> Iterator[bytes]:
    """Return an iterator of one line per row; raise InputUnreadable for a column that JSON cannot hold.

    >>> table = pa.table({"problem": ["1+1?"], "label": pa.array([None], pa.int64())})
    >>> list(lines_of(iter(table.to_batches()), table.schema, "FILE"))
    [b'{"problem": "1+1?"}\\n']
    """
    steps = castings(schema, name)
    as_json = {one.name for one in schema if one.metadata and JSON_TEXT in one.metadata}

    def lines() -> Iterator[bytes]:
        if header := (schema.metadata or {}).get(HEADER):
            yield header
        for batch in batches:
            for step in steps:
                batch = batch.cast(step)  # noqa: PLW2901
            for start in range(0, batch.num_rows, ROWS):
                for row in _rows(batch.slice(start, ROWS)):
                    given = {key: _given(value) for key, value in row.items() if value is not None}
                    yield _encoded(given) if as_json.isdisjoint(given) else _joined(given, as_json)

    return lines()


def validated(batch: Any) -> Any:
    """Return a batch; raise ArrowInvalid for wrong offsets or indices: reading them would end the process.

    Text is viewed as bytes, where Arrow can: what is not UTF-8 is an error of its row.
    """
    for column in batch.columns:
        _as_bytes(column).validate(full=True)
    return batch


def _as_bytes(column: Any) -> Any:
    try:
        return column.view(_of_bytes(column.type))
    except pa.ArrowException:  # of dictionaries and views
        return column


def _rows(batch: Any) -> Iterator[dict[str, Any]]:
    try:
        yield from batch.to_pylist(maps_as_pydicts="strict")
        return
    except (UnicodeDecodeError, KeyError):
        pass
    for at in range(batch.num_rows):
        row = batch.slice(at, 1)
        try:
            yield from row.to_pylist(maps_as_pydicts="strict")
        except (UnicodeDecodeError, KeyError):
            yield {one.name: _damaged(row.column(one.name), one.type) for one in batch.schema}


class _Key(str):
    """A key of a map that has it twice: a Python object with both, whose JSON the parser rejects."""

    __slots__ = ()
    __hash__ = object.__hash__
    __eq__ = object.__eq__


def _damaged(column: Any, kind: Any) -> Any:
    """Return the one value of a column, with bytes that are not UTF-8 as lone surrogates."""
    return _spelled(column.cast(_of_bytes(kind)).to_pylist()[0], kind)


def _of_bytes(kind: Any) -> Any:
    """Return a type with binary in the place of text, which Arrow turns into Python values unread."""
    if kinds.is_string(kind):
        return pa.binary()
    if kinds.is_struct(kind):
        return pa.struct([pa.field(one.name, _of_bytes(one.type)) for one in fields_of(kind)])
    if kinds.is_map(kind):
        return pa.map_(pa.binary(), _of_bytes(kind.item_type))
    return list_like(kind, _of_bytes(kind.value_type)) if hasattr(kind, "value_type") else kind


def _spelled(value: Any, kind: Any) -> Any:
    if value is None:
        return None
    if kinds.is_string(kind):
        return value.decode("utf-8", "surrogateescape")
    if kinds.is_struct(kind):
        return {one.name: _spelled(value[one.name], one.type) for one in fields_of(kind)}
    if kinds.is_map(kind):
        pairs = ((key.decode("utf-8", "surrogateescape"), each) for key, each in value)
        return {_Key(key): _spelled(each, kind.item_type) for key, each in pairs}
    return [_spelled(each, kind.value_type) for each in value] if isinstance(value, list) else value


def _given(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _given(each) for key, each in value.items() if each is not None}
    return [_given(each) for each in value] if isinstance(value, list) else value


def _encoded(row: Any) -> bytes:
    text = json.dumps(row, ensure_ascii=False)
    try:
        return text.encode() + b"\n"
    except UnicodeEncodeError:  # escapes, by which the parser names the field
        return json.dumps(row).encode() + b"\n"


def _joined(row: dict[str, Any], as_json: set[str]) -> bytes:
    """Return the line of a row of which some columns are JSON text already."""
    texts = (
        value.encode("utf-8", "surrogateescape") if key in as_json else _encoded(value)
        for key, value in row.items()
    )
    pairs = (_encoded(key).strip() + b": " + text.strip() for key, text in zip(row, texts, strict=True))
    return b"{" + b", ".join(pairs) + b"}\n"
