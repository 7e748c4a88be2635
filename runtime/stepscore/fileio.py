"""Atomic writes, read-ahead, and errors of writing."""

from __future__ import annotations

import errno
import os
import stat
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from stepscore.errors import OutputUnwritable


def read_ahead(descriptor: int, offset: int, size: int) -> None:
    """Ask the kernel to read a part of an open file in the background, where it supports fadvise."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(descriptor, offset, size, os.POSIX_FADV_WILLNEED)


def read_regular(path: Path) -> bytes:
    """Read a regular file; anything else is an OSError. A FIFO in its place would be waited for."""
    with open(_opened_regular(path, os.O_RDONLY), "rb") as file:
        return file.read()


def append_regular(path: Path) -> BinaryIO:
    """Open a regular file for appending, unbuffered, and create it where it is missing."""
    return open(_opened_regular(path, os.O_RDWR | os.O_APPEND | os.O_CREAT), "ab", buffering=0)


def _opened_regular(path: Path, flags: int) -> int:
    descriptor = os.open(path, flags | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0), 0o666)
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return descriptor
    os.close(descriptor)
    raise OSError(errno.EINVAL, "it is not a regular file", str(path))


def write_atomically(target: Path, parts: Iterable[bytes]) -> None:
    """Write a temporary file in the same folder, then rename it; an error (OutputUnwritable) changes nothing.

    A device or a pipe is written to directly. A symbolic link stays one.
    """
    target = target.resolve()
    if os.path.exists(target) and not os.path.isfile(target):
        _write_into(target, parts)
        return
    # Its name is short: that of the target may be as long as the file system allows.
    staged = target.with_name(f".stepscore-{zlib.crc32(os.fsencode(target.name)):08x}-{os.getpid()}.tmp")
    try:
        with staged.open("wb") as file:
            file.writelines(parts)
            file.flush()
            os.fsync(file.fileno())
        staged.replace(target)
    except OSError as error:
        raise OutputUnwritable(f"cannot write {target}: {error.strerror}") from None
    finally:
        if staged.exists():
            staged.unlink()


def _write_into(device: Path, parts: Iterable[bytes]) -> None:
    try:
        with device.open("wb") as file:
            file.writelines(parts)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputUnwritable(f"cannot write {device}: {error.strerror}") from None


@contextmanager
def os_errors_as_output_errors(path: Path) -> Iterator[None]:
    """Raise OutputUnwritable where writing to `path` fails (no space, no permission)."""
    try:
        yield
    except OSError as error:
        raise OutputUnwritable(
            f"cannot write {path}: {error.strerror or error}",
            hint="free space or choose another --output; `stepscore export --dry-run` prints its size",
        ) from None
