"""Atomic writes, locks, read-ahead, and errors of writing."""

from __future__ import annotations

import errno
import os
import stat
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import BinaryIO

from stepscore.errors import OutputUnwritable

NO_LOCKS = frozenset({errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK})
"""What flock fails with on file systems of clusters that are mounted without locks."""
WAIT = "wait for it, or choose another --output"


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
    staged = _beside(target, f"-{os.getpid()}.tmp")
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


def _beside(target: Path, end: str) -> Path:
    """Return a short name in the same folder: that of the target may be as long as the file system allows."""
    return target.with_name(f".stepscore-{zlib.crc32(os.fsencode(target.name)):08x}{end}")


@contextmanager
def locked(file: BinaryIO, path: Path, fault: str) -> Iterator[None]:
    """Hold the lock of an open file; raise OutputUnwritable with `fault` where another process holds it.

    It is one of the kernel (flock), which ends with the process, however that ends. Where the system or the
    file system has none, it is a file beside the open one that one process alone can create. Only Windows
    removes that of a process that was killed, so the hint names it.
    """
    try:
        has_lock = _flock(file.fileno())
    except BlockingIOError:
        raise OutputUnwritable(fault, hint=WAIT) from None
    with nullcontext() if has_lock else _lock_file(path, fault):
        yield


@contextmanager
def _lock_file(path: Path, fault: str) -> Iterator[None]:
    marker = _beside(path, ".lock")
    deleted_on_close = getattr(os, "O_TEMPORARY", 0)
    try:
        descriptor = os.open(marker, os.O_CREAT | os.O_EXCL | os.O_WRONLY | deleted_on_close)
    except FileExistsError:
        raise OutputUnwritable(
            fault, hint=f"{WAIT}; if none is running, one was killed: delete {marker}"
        ) from None
    except OSError as error:
        raise OutputUnwritable(f"cannot lock {path} by {marker}: {error.strerror}") from None
    try:
        yield
    finally:
        if not deleted_on_close:
            marker.unlink(missing_ok=True)  # before it is closed: afterwards it may be another's
        os.close(descriptor)


def _flock(descriptor: int) -> bool:
    """Lock an open file for this process; return False where there are no such locks."""
    try:
        import fcntl  # noqa: PLC0415 - missing on Windows
    except ImportError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in NO_LOCKS:
            return False
        raise
    return True


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
