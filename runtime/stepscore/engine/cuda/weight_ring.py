"""Weights on the device, stage by stage: those that stay there, and a ring of buffers for the others.

A thread copies the next streamed stages into free buffers of the ring while graphs run on the stage before.
It goes on from the last stage to the first of the next window: weights do not change.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stepscore.artifact.tensor_table import Stage, TensorEntry
from stepscore.engine.cuda.copies import Copies
from stepscore.engine.cuda.device import Buffer, Device, Tensor
from stepscore.engine.cuda.mapped_file import MappedFile
from stepscore.engine.element_types import ONNX_TYPES


@dataclass(frozen=True, slots=True)
class LoadedStage:
    """A stage whose stored bytes are on the device."""

    stage: Stage
    buffer: Buffer

    def tensor(self, entry: TensorEntry) -> Tensor:
        """Return a tensor of the stage."""
        offset = entry.offset - self.stage.extent.offset
        return self.buffer.tensor(entry.shape, ONNX_TYPES[entry.type], offset)


@dataclass(frozen=True, slots=True)
class StoredStage:
    """A stage and the weight file that has it."""

    stage: Stage
    file: MappedFile

    @property
    def num_bytes(self) -> int:
        """Return the size of the stored bytes."""
        return self.stage.extent.size

    @property
    def source(self) -> NDArray[np.uint8]:
        """Return the stored bytes, mapped."""
        return self.file.part(self.stage.extent.offset, self.stage.extent.size)

    def release(self) -> None:
        """Unmap the pages, which would count as memory of the process."""
        self.file.release(self.stage.extent.offset, self.stage.extent.size)


class WeightRing:
    """The stages of a pair in the order in which they run, each on the device when it is its turn."""

    def __init__(
        self,
        device: Device,
        copies: Copies,
        stages: Sequence[StoredStage],
        kept: frozenset[int],
        *,
        slots: int = 2,
    ) -> None:
        self._stages = stages
        self._copies = copies
        self._loaded: dict[int, LoadedStage] = {}
        for index in sorted(kept):
            buffer = device.allocate(stages[index].num_bytes)
            self._loaded[index] = self._fill(index, buffer, repeated=False)
        self._streamed = [index for index in range(len(stages)) if index not in kept]
        size = max((stages[index].num_bytes for index in self._streamed), default=0)
        count = min(slots, len(self._streamed))
        self._free = deque(device.allocate(size) for _ in range(count))
        self._coming: deque[tuple[int, Future[LoadedStage]]] = deque()
        self._copied = 0
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="stepscore-copy")

    def in_turn(self) -> Generator[LoadedStage, None, None]:
        """Yield the stages of one window; a stage is gone when the next one is asked for."""
        self._begin()
        for index in range(len(self._stages)):
            self._start()
            if index in self._loaded:
                yield self._loaded[index]
                continue
            _, coming = self._coming.popleft()
            loaded = coming.result()
            try:
                yield loaded
            finally:
                self._free.append(loaded.buffer)
        self._start()

    def close(self) -> None:
        """End the thread and release the buffers."""
        self._thread.shutdown(cancel_futures=True)
        self._loaded.clear()
        self._free.clear()
        self._coming.clear()

    def _begin(self) -> None:
        """Drop what was copied ahead in a window that was left before its end."""
        if self._coming and self._coming[0][0] == self._streamed[0]:
            return
        while self._coming:
            self._free.append(self._coming.popleft()[1].result().buffer)
        self._copied = 0

    def _start(self) -> None:
        """Copy the stages that come next into the buffers that are free."""
        while self._free:
            index = self._streamed[self._copied % len(self._streamed)]
            self._copied += 1
            coming = self._thread.submit(self._fill, index, self._free.popleft())
            self._coming.append((index, coming))

    def _fill(self, index: int, buffer: Buffer, *, repeated: bool = True) -> LoadedStage:
        stored = self._stages[index]
        self._copies.copy(stored.source, buffer, repeated=repeated)
        if not (repeated and self._copies.lock_sources):
            stored.release()
        return LoadedStage(stored.stage, buffer)
