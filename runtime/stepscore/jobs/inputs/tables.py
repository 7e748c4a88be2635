"""Open Parquet and Arrow IPC as lines, in the order of their rows.

A page of Parquet, and a batch of an Arrow file, is decompressed whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import ipc

from stepscore.errors import InputUnreadable
from stepscore.jobs.inputs.compressed import Borrowed
from stepscore.jobs.inputs.formats import Format
from stepscore.jobs.inputs.row_lines import ROWS, RowLines, lines_of, validated

COLUMN_BUFFER_BYTES = 1 << 20
_DAMAGE = (pa.ArrowException, OSError, EOFError, ValueError)
"""What pyarrow raises for a damaged file; ArrowInvalid is a ValueError, its IOError an OSError."""


def table_lines(source: BinaryIO, kind: Format, name: str) -> RowLines:
    """Return the lines of one open file, seekable unless it is an Arrow stream."""
    try:
        if kind is Format.PARQUET:
            return _parquet_lines(source, name)
        reader = (ipc.open_file if kind is Format.ARROW_FILE else ipc.open_stream)(_handle(source))
    except _DAMAGE as error:
        raise _unreadable(error, name) from None
    lines = lines_of(_whole(_batches(reader), name), reader.schema, name)
    return RowLines(lines, source)


def lines_of_parts(paths: Sequence[Path]) -> Iterator[bytes]:
    """Yield the lines of Arrow streams that are the parts of one table; one file is open at a time."""
    for path in paths:
        with path.open("rb") as file:
            try:
                reader = ipc.open_stream(_handle(file))
            except _DAMAGE as error:
                raise _unreadable(error, str(path)) from None
            yield from lines_of(_whole(_batches(reader), str(path)), reader.schema, str(path))


def _handle(source: BinaryIO) -> Any:
    return pa.PythonFile(Borrowed(source), "r")


def _parquet_lines(source: BinaryIO, name: str) -> RowLines:
    file = pq.ParquetFile(_handle(source), buffer_size=COLUMN_BUFFER_BYTES, pre_buffer=False)
    batches = map(validated, file.iter_batches(batch_size=ROWS, use_threads=False))
    lines = lines_of(_whole(batches, name), file.schema_arrow, name)
    metadata = file.schema_arrow.metadata
    return RowLines(lines, source, num_rows=file.metadata.num_rows, metadata=metadata)


def _batches(reader: Any) -> Iterator[Any]:
    whole = (
        (reader.get_batch(at) for at in range(reader.num_record_batches))
        if isinstance(reader, ipc.RecordBatchFileReader)
        else reader
    )
    return map(validated, whole)


def _whole(batches: Iterator[Any], name: str) -> Iterator[Any]:
    """Yield the batches; damage raises InputUnreadable behind the last one that is whole."""
    try:
        yield from batches
    except _DAMAGE as error:
        raise _unreadable(error, name) from None


def _unreadable(error: Exception, name: str) -> InputUnreadable:
    return InputUnreadable(
        f"{name} cannot be read: {str(error).splitlines()[0][:200] if str(error) else type(error).__name__}",
        hint="copy or download it again",
    )
