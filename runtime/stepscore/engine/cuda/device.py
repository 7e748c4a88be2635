"""Memory of the device: buffers, views of them that graphs are bound to, and how much there is.

The device is a GPU, or the CPU in its place: then buffers are host memory, and everything but the copies to
a GPU is the same code.
"""

from __future__ import annotations

import ctypes
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from stepscore.engine.element_types import BITS
from stepscore.engine.ort.sessions import naming_faults
from stepscore.enums import Provider
from stepscore.errors import DoesNotFit

ALIGNMENT = 256
"""Of tensors within a buffer, in bytes: what cuBLAS wants of its fastest kernels."""


def aligned(num_bytes: int) -> int:
    """Round up to a multiple of ALIGNMENT.

    >>> aligned(1), aligned(256)
    (256, 256)
    """
    return -(-num_bytes // ALIGNMENT) * ALIGNMENT


@dataclass(frozen=True, slots=True)
class Buffer:
    """Bytes of the device from an address on, which live as long as their owner, held here."""

    address: int
    num_bytes: int
    owner: object

    def tensor(self, shape: tuple[int, ...], element_type: int, offset: int = 0) -> Tensor:
        """Return a view; ValueError where it does not lie within the buffer."""
        tensor = Tensor(self, offset, shape, element_type)
        if not 0 <= offset <= offset + tensor.num_bytes <= self.num_bytes:
            raise ValueError(f"{tensor.num_bytes} bytes at {offset} are outside a buffer of {self.num_bytes}")
        return tensor


@dataclass(frozen=True, slots=True)
class Tensor:
    """A view of a buffer: byte offset, shape, and ONNX's number of the element type."""

    buffer: Buffer
    offset: int
    shape: tuple[int, ...]
    element_type: int

    @property
    def address(self) -> int:
        """Return the address of the first element."""
        return self.buffer.address + self.offset

    @property
    def num_bytes(self) -> int:
        """Return the size in bytes."""
        return -(-int(np.prod(self.shape, dtype=np.int64)) * BITS[self.element_type] // 8)

    def rows(self, start: int, stop: int) -> Tensor:
        """Return rows [start:stop]; a row is a whole number of bytes."""
        of_row = int(np.prod(self.shape[1:], dtype=np.int64)) * BITS[self.element_type] // 8
        return Tensor(
            self.buffer, self.offset + start * of_row, (stop - start, *self.shape[1:]), self.element_type
        )

    def viewed(self, *shape: int) -> Tensor:
        """Return the same bytes in another shape."""
        return Tensor(self.buffer, self.offset, shape, self.element_type)


class Device(ABC):
    """Allocates buffers of exactly the size that is asked for, and counts their bytes."""

    provider: Provider
    """Execution provider of the sessions that run on it."""

    def __init__(self) -> None:
        self.num_bytes = 0
        """Bytes of all buffers that were asked for and not given back."""
        self.most_bytes = 0
        """The most that they ever were."""

    def allocate(self, num_bytes: int) -> Buffer:
        """Allocate a buffer; DoesNotFit where the device has no room for it."""
        buffer = self._allocate(num_bytes)
        self.num_bytes += num_bytes
        self.most_bytes = max(self.most_bytes, self.num_bytes)
        return buffer

    def give_back(self, buffer: Buffer) -> None:
        """Stop counting a buffer whose last reference is about to go."""
        self.num_bytes -= buffer.num_bytes

    def put(self, array: NDArray[Any], element_type: int) -> Tensor:
        """Copy an array to a tensor of its own, which is small and not counted."""
        array = np.ascontiguousarray(array)
        buffer = self._allocate(array.nbytes)
        self._write(array.reshape(-1).view(np.uint8) if array.size else np.empty(0, np.uint8), buffer)
        return buffer.tensor(array.shape, element_type)

    @abstractmethod
    def _allocate(self, num_bytes: int) -> Buffer: ...

    @abstractmethod
    def _write(self, raw: NDArray[np.uint8], buffer: Buffer) -> None: ...


class HostDevice(Device):
    """Host memory in the place of a GPU's."""

    provider = Provider.CPU

    def _allocate(self, num_bytes: int) -> Buffer:
        try:
            owner = np.empty(num_bytes + ALIGNMENT, np.uint8)
        except MemoryError:
            raise DoesNotFit(
                f"out of memory: {num_bytes / 1e9:.2f} GB cannot be allocated",
                hint="lower --max-batch-tokens, or use --residency stream",
            ) from None
        return Buffer(aligned(owner.ctypes.data), num_bytes, owner)

    def _write(self, raw: NDArray[np.uint8], buffer: Buffer) -> None:
        np.copyto(host_bytes(buffer.address, len(raw)), raw)


def host_bytes(address: int, num_bytes: int) -> NDArray[np.uint8]:
    """Return host memory as an array; whoever owns it must outlive the array."""
    if num_bytes == 0:
        return np.empty(0, np.uint8)
    return np.ctypeslib.as_array((ctypes.c_uint8 * num_bytes).from_address(address))


def run_graph(
    session: ort.InferenceSession,
    inputs: Mapping[str, Tensor | NDArray[Any]],
    outputs: Mapping[str, Tensor | NDArray[np.float32]],
    device: Device,
) -> None:
    """Run a graph on tensors of the device and small host arrays, and write into `outputs`.

    A host array among the outputs is contiguous.

    An output may lie on one of the inputs, where the graph's last operator reads that input element by
    element.
    """
    with naming_faults("run a graph"):
        binding = session.io_binding()
        for name, value in inputs.items():
            if isinstance(value, Tensor):
                where = device.provider.value, 0, value.element_type
                binding.bind_input(name, *where, list(value.shape), value.address)
            else:
                binding.bind_cpu_input(name, value)
        for name, result in outputs.items():
            if isinstance(result, Tensor):
                where = device.provider.value, 0, result.element_type
                binding.bind_output(name, *where, list(result.shape), result.address)
            else:
                binding.bind_output(name, "cpu", 0, np.float32, list(result.shape), result.ctypes.data)
        binding.synchronize_inputs()
        session.run_with_iobinding(binding)
