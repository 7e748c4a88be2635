"""Row blocks on two cores: numpy gives up the interpreter's lock while it computes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from stepscore_export.checkpoint.weight_source import WeightSource

T = TypeVar("T")
U = TypeVar("U")

WORKERS = 2


def in_order(function: Callable[[T], U], items: Iterable[T]) -> Iterator[U]:
    """Give function(item) of each item, in order; WORKERS are computed at a time, and no more are held.

    >>> list(in_order(abs, iter([-3, 2, -1])))
    [3, 2, 1]
    """
    with ThreadPoolExecutor(WORKERS, thread_name_prefix="stepscore-export") as pool:
        running: deque[Future[U]] = deque()
        for item in items:
            running.append(pool.submit(function, item))
            if len(running) == WORKERS:
                yield running.popleft().result()
        while running:
            yield running.popleft().result()


BLOCK_ELEMENTS = 1 << 21  # 8 MB of float32: large enough for numpy, small enough for any machine


Advance = Callable[[int], None]
"""Called with the number of source parameters that are done."""


@dataclass(frozen=True, slots=True)
class RowStack:
    """Matrices [N_i, K] of one checkpoint below each other, or rows [start:stop] of one."""

    checkpoint: WeightSource
    names: tuple[str, ...]
    advance: Advance
    start: int = 0
    stop: int | None = None

    @property
    def rows(self) -> int:
        """Count the rows of all matrices."""
        return sum(len(self._range(name)) for name in self.names)

    @property
    def columns(self) -> int:
        """Return the columns of every matrix."""
        return self.checkpoint.shape(self.names[0])[1]

    def blocks(self) -> Iterator[NDArray[np.float32]]:
        """Yield float32 blocks of at most BLOCK_ELEMENTS numbers."""
        step = max(1, BLOCK_ELEMENTS // self.columns)
        for name in self.names:
            rows = self._range(name)
            for first in rows[::step]:
                block = self.checkpoint.rows(name, first, min(first + step, rows.stop))
                yield block
                self.advance(block.size)

    def _range(self, name: str) -> range:
        return range(self.checkpoint.shape(name)[0])[self.start : self.stop]
