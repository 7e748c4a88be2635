"""Process row blocks in two threads: numpy releases the GIL while it computes."""

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
    """Yield function(item) for each item, in order; at most WORKERS results are computed and held at a time.

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
"""Progress callback: called with the number of source parameters that were just processed."""


@dataclass(frozen=True, slots=True)
class RowStack:
    """Matrices [N_i, K] of one checkpoint concatenated by rows, or rows [start:stop] of one matrix."""

    checkpoint: WeightSource
    names: tuple[str, ...]
    advance: Advance
    start: int = 0
    stop: int | None = None

    @property
    def rows(self) -> int:
        """Return the number of rows of all matrices."""
        return sum(len(self._range(name)) for name in self.names)

    @property
    def columns(self) -> int:
        """Return the number of columns, which all matrices share."""
        return self.checkpoint.shape(self.names[0])[1]

    def blocks(self) -> Iterator[NDArray[np.float32]]:
        """Yield row blocks in float32, at most BLOCK_ELEMENTS elements each (or one row)."""
        step = max(1, BLOCK_ELEMENTS // self.columns)
        for name in self.names:
            rows = self._range(name)
            for first in rows[::step]:
                block = self.checkpoint.rows(name, first, min(first + step, rows.stop))
                yield block
                self.advance(block.size)

    def _range(self, name: str) -> range:
        return range(self.checkpoint.shape(name)[0])[self.start : self.stop]
