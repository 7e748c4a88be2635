"""The standard streams of a command: closed ones, terminals, and files that are another name of them."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import sys
from typing import BinaryIO, NoReturn, cast

from stepscore.visible import printable_json

STDOUT_NAMES = ("/dev/stdout", "/dev/fd/1", "/proc/self/fd/1")


class _Closed(io.RawIOBase):
    """A stream that the caller closed: reading and writing fail instead of doing nothing."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self._name = name

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def readinto(self, _buffer: object) -> NoReturn:
        raise self._error()

    def write(self, _data: object) -> NoReturn:
        raise self._error()

    def _error(self) -> OSError:
        return OSError(errno.EBADF, f"{self._name} is closed")


class _Terminal(io.RawIOBase):
    """JSON lines on a terminal: the same values, and no control character of a text acts."""

    def __init__(self, raw: BinaryIO) -> None:
        super().__init__()
        self._raw = raw

    def writable(self) -> bool:
        return True

    def write(self, data: object) -> int:
        line = cast(bytes, data)
        shown = printable_json(line)
        while shown:
            shown = shown[self._raw.write(shown) :]
        return len(line)


def hold_standard_streams() -> None:
    """Make closed streams fail when used, and any text printable on the others.

    A closed descriptor would be taken by the next file that is opened, and what libraries print would end up
    in it. Python's own object of such a stream is None.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number
    if sys.stdin is None:
        sys.stdin = io.TextIOWrapper(io.BufferedReader(_Closed("standard input")))
    if sys.stdout is None:
        sys.stdout = io.TextIOWrapper(cast(BinaryIO, _Closed("standard output")), write_through=True)
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 (open until the end)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def is_standard_output(output: str | None) -> bool:
    """Return whether an --output is standard output, by any of its names.

    >>> is_standard_output("-"), is_standard_output("/dev/stdout"), is_standard_output("rewards.jsonl")
    (True, True, False)
    """
    return output is None or output == "-" or os.path.normpath(output) in STDOUT_NAMES


def standard_output() -> contextlib.AbstractContextManager[BinaryIO]:
    """Return standard output for JSON lines, unbuffered: closing a buffer would flush, and fail again."""
    buffer = cast(BinaryIO, getattr(sys.stdout, "buffer", sys.stdout))
    raw = cast(BinaryIO, buffer.raw) if isinstance(buffer, io.BufferedWriter) else buffer
    sys.stdout.flush()
    if sys.stdout.isatty():
        return contextlib.nullcontext(cast(BinaryIO, _Terminal(raw)))
    return contextlib.nullcontext(raw)


def discard_standard_output() -> None:
    """Point standard output to nowhere: what is still buffered for it must not fail again at exit."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def print_data(data: bytes) -> None:
    """Print a JSON document or a page around one on standard output, in UTF-8 whatever the locale."""
    sys.stdout.flush()
    output = cast(BinaryIO, getattr(sys.stdout, "buffer", sys.stdout))
    output.write(printable_json(data) if sys.stdout.isatty() else data)
    output.flush()
