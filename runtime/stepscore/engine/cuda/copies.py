"""Copy weights and rows from host memory to buffers of the device."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stepscore.engine.cuda.device import Buffer, Tensor, host_bytes
from stepscore.engine.element_types import BFLOAT16, FLOAT, FLOAT16, as_float32


class Copies(ABC):
    """Copies host arrays into buffers; a call returns when the bytes are there.

    Calls from two threads may overlap: one copies weights while the other runs graphs.
    """

    lock_sources: bool = False
    """Whether sources that are copied again and again stay locked in memory."""

    @abstractmethod
    def copy(self, source: NDArray[Any], target: Buffer, offset: int = 0, *, repeated: bool = False) -> None:
        """Copy all bytes of a contiguous array to `offset` of the buffer; ValueError where they do not fit.

        `repeated` says that this array is copied again and again, and lives as long as the copies.
        """

    @abstractmethod
    def read(self, source: Tensor) -> NDArray[np.float32]:
        """Return floats of the device as a new float32 array."""

    def close(self) -> None:  # noqa: B027 (some hold nothing)
        """Release what the copies hold: locked memory, streams."""


class HostCopies(Copies):
    """Copies where the CPU stands for the device."""

    def copy(self, source: NDArray[Any], target: Buffer, offset: int = 0, *, repeated: bool = False) -> None:
        """Copy all bytes of a contiguous array; ValueError where they do not fit."""
        raw = source.reshape(-1).view(np.uint8)
        if offset + len(raw) > target.num_bytes:
            raise ValueError(f"{len(raw)} bytes at {offset} are outside a buffer of {target.num_bytes}")
        np.copyto(host_bytes(target.address + offset, len(raw)), raw)

    def read(self, source: Tensor) -> NDArray[np.float32]:
        """Return floats of the device as a new float32 array."""
        return floats_of(host_bytes(source.address, source.num_bytes).copy(), source)


def floats_of(raw: NDArray[np.uint8], tensor: Tensor) -> NDArray[np.float32]:
    """Return the bytes of a tensor of floats as float32."""
    kinds = {FLOAT: np.float32, FLOAT16: np.float16, BFLOAT16: np.uint16}
    return as_float32(raw.view(kinds[tensor.element_type]).reshape(tensor.shape), tensor.element_type)
