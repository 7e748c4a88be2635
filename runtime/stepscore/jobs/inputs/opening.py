"""Open an input as JSON Lines: a file, a folder of `datasets` or standard input, whatever its format.

What a file or a stream holds is found by its first bytes, never by its name. A pipe is looked at when it is
first read, so that opening one waits for nobody.
"""

from __future__ import annotations

import io
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

from stepscore.errors import InputUnreadable
from stepscore.extras import naming_extras
from stepscore.jobs.inputs.compressed import Decompressed
from stepscore.jobs.inputs.dataset_folder import STATE, data_files
from stepscore.jobs.inputs.formats import AT_ITS_END, BEGINNING_BYTES, COMPRESSED, Format, format_of, is_open

STANDARD_INPUT = "standard input"


@contextmanager
def open_input(source: str | Path) -> Iterator[BinaryIO]:
    """Open a path, or - for standard input, as a stream of JSON lines.

    Raises InputUnreadable where it cannot be read, ExtraMissing where its format needs pyarrow. A plain file
    of JSON lines is the file itself, unbuffered: a thread that waits for a line holds the lock of its buffer,
    and closing that buffer, here or at exit, would wait for the line as well.
    """
    with ExitStack() as stack:
        if source == "-":
            stdin = sys.stdin.buffer
            raw = cast(BinaryIO, stdin.raw) if isinstance(stdin, io.BufferedReader) else stdin
            yield lines_of_stream(raw, STANDARD_INPUT, stack)
        elif Path(source).is_dir():
            yield _dataset_lines(Path(source), stack)
        else:
            raw = cast(BinaryIO, stack.enter_context(open(source, "rb", buffering=0)))
            yield lines_of_stream(raw, str(source), stack)


def lines_of_stream(raw: BinaryIO, name: str, stack: ExitStack) -> BinaryIO:
    """Return a stream of the JSON lines that an open stream holds; what is opened for it is on the stack."""
    if not raw.seekable():
        return cast(BinaryIO, _Arriving(raw, name, stack))
    try:
        start = raw.tell()
        kind = format_of(raw.read(BEGINNING_BYTES))
        raw.seek(start)
    except OSError as error:
        raise InputUnreadable(
            f"cannot read the input: {error.strerror or error}",
            hint="copy the file again, or from its source",
        ) from None
    return _opened(raw, kind, name, stack)


class _Arriving(io.RawIOBase):
    """A pipe, whose format is found when it is read for the first time."""

    def __init__(self, raw: BinaryIO, name: str, stack: ExitStack) -> None:
        super().__init__()
        self._raw, self._name, self._stack = raw, name, stack
        self._lines: BinaryIO | None = None

    def readable(self) -> bool:
        """Return that this is a stream to read."""
        return True

    def fileno(self) -> int:
        """Return the descriptor of the pipe."""
        return self._raw.fileno()

    def readinto(self, buffer: Any) -> int:
        """Read what is there, and wait only where nothing is."""
        if self._lines is None:
            self._lines = self._found()
        return cast(int, cast(Any, self._lines).readinto(buffer))

    def _found(self) -> BinaryIO:
        beginning = b""
        while is_open(beginning):
            more = self._raw.read(BEGINNING_BYTES - len(beginning))
            if not more:
                break
            beginning += more
        kind = format_of(beginning)
        return _opened(cast(BinaryIO, _Rejoined(beginning, self._raw)), kind, self._name, self._stack)


class _Rejoined(io.RawIOBase):
    """A stream with the bytes in front of it that were read to find its format."""

    def __init__(self, beginning: bytes, raw: BinaryIO) -> None:
        super().__init__()
        self._beginning, self._raw = beginning, raw

    def readable(self) -> bool:
        """Return that this is a stream to read."""
        return True

    def fileno(self) -> int:
        """Return the descriptor of the stream."""
        return self._raw.fileno()

    def readinto(self, buffer: Any) -> int:
        """Read the beginning, then the stream."""
        data = self._beginning[: len(buffer)] or self._raw.read(len(buffer))
        self._beginning = self._beginning[len(buffer) :]
        buffer[: len(data)] = data
        return len(data)


def _opened(raw: BinaryIO, kind: Format, name: str, stack: ExitStack) -> BinaryIO:
    if kind is Format.JSON_LINES:
        return raw
    if kind not in COMPRESSED:
        return _table(raw, kind, name, stack)
    plain = io.BufferedReader(Decompressed(raw, kind, name))
    inner = format_of(plain.peek(BEGINNING_BYTES)[:BEGINNING_BYTES])
    if inner in COMPRESSED:
        raise InputUnreadable(f"{name} is compressed twice", hint="decompress it once")
    lines = cast(BinaryIO, plain)
    return lines if inner is Format.JSON_LINES else _table(lines, inner, name, stack)


def _table(raw: BinaryIO, kind: Format, name: str, stack: ExitStack) -> BinaryIO:
    with naming_extras():
        from stepscore.jobs.inputs.tables import table_lines  # noqa: PLC0415
    if not raw.seekable() and isinstance(raw, io.RawIOBase):
        raw = cast(BinaryIO, io.BufferedReader(raw))  # pyarrow takes a short read for the end
    if kind in AT_ITS_END and not raw.seekable():
        copy = cast(BinaryIO, stack.enter_context(tempfile.TemporaryFile()))  # noqa: SIM115 (on the stack)
        shutil.copyfileobj(raw, copy)
        copy.seek(0)
        raw = copy
    return cast(BinaryIO, table_lines(raw, kind, name))


def _dataset_lines(folder: Path, stack: ExitStack) -> BinaryIO:
    paths = data_files(folder)
    with naming_extras():
        from stepscore.jobs.inputs.row_lines import RowLines  # noqa: PLC0415
        from stepscore.jobs.inputs.tables import lines_of_parts  # noqa: PLC0415
    state = cast(BinaryIO, stack.enter_context((folder / STATE).open("rb")))
    return cast(BinaryIO, RowLines(lines_of_parts(paths), state))


def is_file(source: BinaryIO) -> bool:
    """Return whether a stream is of a regular file, or in memory: all of it is there."""
    try:
        return stat.S_ISREG(os.fstat(source.fileno()).st_mode)
    except OSError:
        return source.seekable()
