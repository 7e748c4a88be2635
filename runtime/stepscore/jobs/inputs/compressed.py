"""Decompress gzip and Zstandard as streams, in bounded memory; several members or frames are one input."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Callable
from typing import Any, BinaryIO, cast

from stepscore.errors import InputUnreadable
from stepscore.extras import naming_extras
from stepscore.jobs.inputs.formats import Format

PIECE_BYTES = 512
"""Bytes asked of the Zstandard reader at a time: what a piece held before an error is lost with it."""


class Borrowed:
    """A stream for pyarrow, which closes what it is given: the stream itself stays open."""

    closed = False

    def __init__(self, source: BinaryIO) -> None:
        self.read, self.seek, self.tell = source.read, source.seek, source.tell
        self.readable, self.seekable = source.readable, source.seekable

    def close(self) -> None:
        """Leave the stream open."""

    def flush(self) -> None:
        """Do nothing: it is only read."""


class Decompressed(io.RawIOBase):
    """The decompressed bytes of a stream; a damaged one raises InputUnreadable behind its last good bytes."""

    def __init__(self, source: BinaryIO, kind: Format, name: str) -> None:
        super().__init__()
        self._source, self._kind, self._name = source, kind, name
        self._read = _reader(source, kind)

    def readable(self) -> bool:
        """Return that this is a stream to read."""
        return True

    def fileno(self) -> int:
        """Return the descriptor of the compressed file, which says what kind of file it is."""
        return self._source.fileno()

    def readinto(self, buffer: Any) -> int:
        """Decompress into a buffer."""
        try:
            data = self._read(len(buffer))
        except (EOFError, OSError, zlib.error) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise  # of the disk, not of the data
            raise InputUnreadable(
                f"{self._name} is not whole {_NAMES[self._kind]} data: {error}",
                hint="copy or download it again",
            ) from None
        buffer[: len(data)] = data
        return len(data)


_NAMES = {Format.GZIP: "gzip", Format.ZSTANDARD: "Zstandard"}


def _reader(source: BinaryIO, kind: Format) -> Callable[[int], bytes]:
    if kind is Format.GZIP:
        return cast(Callable[[int], bytes], gzip.GzipFile(fileobj=source, mode="rb").read1)
    with naming_extras():
        import pyarrow as pa  # noqa: PLC0415
    stream = pa.CompressedInputStream(pa.PythonFile(Borrowed(source), "r"), "zstd")
    return lambda size: cast(bytes, stream.read(min(size, PIECE_BYTES)))
