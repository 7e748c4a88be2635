"""A file mapped into memory, whose pages are unmapped when they have been copied."""

from __future__ import annotations

import mmap
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


class MappedFile:
    """The bytes of a file, read only."""

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._bytes = np.frombuffer(self._map, np.uint8)

    def part(self, offset: int, size: int) -> NDArray[np.uint8]:
        """Return some of the bytes, without copying them."""
        return self._bytes[offset : offset + size]

    def release(self, offset: int, size: int) -> None:
        """Unmap the pages that lie wholly within these bytes; they are read again where they are needed."""
        first = -(-offset // mmap.PAGESIZE) * mmap.PAGESIZE
        end = (offset + size) // mmap.PAGESIZE * mmap.PAGESIZE
        with suppress(AttributeError, OSError):  # not on every system
            if end > first:
                self._map.madvise(mmap.MADV_DONTNEED, first, end - first)
