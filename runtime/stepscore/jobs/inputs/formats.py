"""Formats of an input, by its first bytes."""

from __future__ import annotations

from enum import Enum, auto


class Format(Enum):
    """Formats that are read; anything else is taken for JSON Lines."""

    JSON_LINES = auto()
    GZIP = auto()
    ZSTANDARD = auto()
    PARQUET = auto()
    ARROW_FILE = auto()
    ARROW_STREAM = auto()


COMPRESSED = (Format.GZIP, Format.ZSTANDARD)
AT_ITS_END = (Format.PARQUET, Format.ARROW_FILE)
"""Formats whose index is at the end of the file: a pipe is copied to disk."""

_SKIPPABLE = [bytes([0x50 + low]) + b"\x2a\x4d\x18" for low in range(16)]
_BEGINNINGS = {
    b"\x1f\x8b": Format.GZIP,
    b"\x28\xb5\x2f\xfd": Format.ZSTANDARD,
    **dict.fromkeys(_SKIPPABLE, Format.ZSTANDARD),
    b"PAR1": Format.PARQUET,
    b"ARROW1\0\0": Format.ARROW_FILE,
    b"\xff\xff\xff\xff": Format.ARROW_STREAM,
}
BEGINNING_BYTES = max(map(len, _BEGINNINGS))


def format_of(beginning: bytes) -> Format:
    """Return the format of data that begins so; BEGINNING_BYTES always suffice.

    Sources: RFC 1952 (gzip), RFC 8878 (Zstandard, skippable frames), Apache Parquet's README, the IPC format
    of Apache Arrow (file magic; continuation marker of a stream).

    >>> format_of(b"PAR1....").name, format_of(b'{"problem"').name
    ('PARQUET', 'JSON_LINES')
    """
    found = (known for start, known in _BEGINNINGS.items() if beginning.startswith(start))
    return next(found, Format.JSON_LINES)


def is_open(beginning: bytes) -> bool:
    """Return whether more bytes could change the format.

    >>> is_open(b"PA"), is_open(b"{"), is_open(b"PAR1")
    (True, False, False)
    """
    return any(len(beginning) < len(start) and start.startswith(beginning) for start in _BEGINNINGS)
