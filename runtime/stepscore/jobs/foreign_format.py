"""Recognize files of formats that are not read, by how they begin, to say how to convert them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ForeignFormat:
    """A format that a job does not read, and a command that converts it."""

    name: str
    remedy: str


def _piped(command: str) -> str:
    return f"decompress it: {command} FILE | stepscore score PAIR -"


_TO_LINES = "to_json('FILE.jsonl', orient='records', lines=True)"
_BEGINNINGS = {
    b"\xfd7zXZ": ForeignFormat("xz data", _piped("xzcat")),
    b"BZh": ForeignFormat("bzip2 data", _piped("bzcat")),
    b"PK\x03\x04": ForeignFormat("a ZIP archive", _piped("unzip -p")),
    b"\x04\x22\x4d\x18": ForeignFormat("LZ4 data", _piped("lz4cat")),
    b"ORC": ForeignFormat("ORC", f"convert it with pandas: read_orc('FILE').{_TO_LINES}"),
    b"FEA1": ForeignFormat("Feather, version 1", f"convert it with pandas: read_feather('FILE').{_TO_LINES}"),
    b"PARE": ForeignFormat("encrypted Parquet", "decrypt it, or write it again without encryption"),
    b"\xff\xfe": ForeignFormat("UTF-16 text", "convert it: iconv -f UTF-16 -t UTF-8 FILE > FILE.jsonl"),
    b"\xfe\xff": ForeignFormat("UTF-16 text", "convert it: iconv -f UTF-16 -t UTF-8 FILE > FILE.jsonl"),
    b"version https://git-lfs": ForeignFormat("a Git LFS pointer", "download the file itself: git lfs pull"),
    b"<": ForeignFormat("HTML or XML", "download the file itself, not the page about it"),
    b"[": ForeignFormat("a JSON array", "write its elements as lines: jq -c '.[]' FILE > FILE.jsonl"),
}
_OVER_LINES = ForeignFormat("JSON over several lines", "write one object a line: jq -c . FILE > FILE.jsonl")


def foreign_format(beginning: bytes) -> ForeignFormat | None:
    """Return the format of a file that holds no record, by its first line; None if it is not known.

    >>> foreign_format(b"[").name
    'a JSON array'
    """
    text = beginning.removeprefix(b"\xef\xbb\xbf").strip()
    for start, found in _BEGINNINGS.items():
        if beginning.startswith(start) or text.startswith(start):
            return found
    if b"\0" in beginning[:4]:  # text whose byte order is not marked
        return _BEGINNINGS[b"\xff\xfe"]
    return _OVER_LINES if text in {b"{", b'{"'} or (text[:1] == b"{" and text[-1:] in b"{[,") else None
