"""Read matrices in row blocks, which bound what an export holds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from stepscore_export.checkpoint.weight_source import WeightSource

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

    def again(self) -> RowStack:
        """Return the same rows, to be read a second time without counting as progress."""
        return replace(self, advance=lambda _count: None)

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
