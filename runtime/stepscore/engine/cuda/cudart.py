"""Copies to a GPU by the CUDA runtime library, which onnxruntime-gpu[cuda] installs; called by ctypes.

Weights that are streamed are copied from page-locked memory, on a stream of their own, so that a copy and the
graphs of another stream run at the same time. The mapped weight file itself is locked where the driver can
(cudaHostRegister). Elsewhere bytes go through two locked buffers; where none can be had, through the driver's
own. Calls by ctypes release the GIL, so a thread that copies does not hold up the one that runs graphs.
"""

from __future__ import annotations

import ctypes
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from stepscore.engine.cuda.copies import Copies, floats_of
from stepscore.engine.cuda.device import Buffer, Device, Tensor, host_bytes
from stepscore.enums import Provider
from stepscore.errors import DoesNotFit, ProviderUnavailable

LIBRARIES = ("libcudart.so.13", "libcudart.so.12")
TO_DEVICE, TO_HOST = 1, 2
"""cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost."""
NON_BLOCKING = 1
"""cudaStreamNonBlocking: the stream does not wait for the default stream."""
PORTABLE, READ_ONLY = 1, 8
"""cudaHostRegisterPortable, cudaHostRegisterReadOnly."""
OUT_OF_MEMORY = 2
MAJOR_CAPABILITY = 75
"""cudaDevAttrComputeCapabilityMajor."""
AMPERE = 8
"""The first compute capability with TF32."""
STAGING_BYTES = 32 << 20
PAGE = 4096


class CudaRuntime:
    """The functions of libcudart that are used; a call that fails raises."""

    def __init__(self, library: Any) -> None:
        self._library = library

    @classmethod
    def load(cls) -> CudaRuntime:
        """Load the library that ONNX Runtime uses; raise ProviderUnavailable where there is none."""
        ort.preload_dlls()
        for name in LIBRARIES:
            with suppress(OSError):
                return cls(ctypes.CDLL(name))
        raise ProviderUnavailable(
            f"the CUDA runtime library is missing: none of {', '.join(LIBRARIES)} can be loaded",
            hint="pip install 'stepscore[cuda]', which brings it",
        )

    def call(self, name: str, *arguments: Any) -> None:
        """Call a function; DoesNotFit where it reports that memory is out, else ProviderUnavailable."""
        code = self.status(name, *arguments)
        if code == OUT_OF_MEMORY:
            raise DoesNotFit(
                f"out of memory: {name} failed", hint="lower --memory-limit, or use --residency stream"
            )
        if code:
            raise ProviderUnavailable(
                f"{name} failed: {self._said(code)}", hint="run `stepscore doctor`, and restart the process"
            )

    def status(self, name: str, *arguments: Any) -> int:
        """Call a function and return its error code, 0 for none."""
        return int(getattr(self._library, name)(*arguments))

    def attribute(self, number: int) -> int:
        """Return an attribute of the first device."""
        value = ctypes.c_int()
        self.call("cudaDeviceGetAttribute", ctypes.byref(value), number, 0)
        return value.value

    def free_bytes(self) -> int:
        """Return the free memory of the first device, the context of this process taken."""
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        self.call("cudaMemGetInfo", ctypes.byref(free), ctypes.byref(total))
        return free.value

    def _said(self, code: int) -> str:
        function: Callable[[int], bytes | None] = self._library.cudaGetErrorString
        with suppress(AttributeError):  # a library in tests
            self._library.cudaGetErrorString.restype = ctypes.c_char_p
        text = function(code)
        return text.decode() if isinstance(text, bytes) else f"error {code}"


class GpuDevice(Device):
    """Memory of the first GPU, by cudaMalloc: an arena would take more than it is asked for."""

    provider = Provider.CUDA

    def __init__(self, runtime: CudaRuntime) -> None:
        super().__init__()
        self._runtime = runtime

    def _allocate(self, num_bytes: int) -> Buffer:
        pointer = ctypes.c_void_p()
        self._runtime.call("cudaMalloc", ctypes.byref(pointer), ctypes.c_size_t(max(num_bytes, 1)))
        owner = _Allocation()
        weakref.finalize(owner, self._runtime.status, "cudaFree", ctypes.c_void_p(pointer.value))
        return Buffer(pointer.value or 0, num_bytes, owner)

    def _write(self, raw: NDArray[np.uint8], buffer: Buffer) -> None:
        where = ctypes.c_void_p(buffer.address), ctypes.c_void_p(raw.ctypes.data)
        self._runtime.call("cudaMemcpy", *where, ctypes.c_size_t(len(raw)), TO_DEVICE)


class _Allocation:
    """What keeps memory of the GPU allocated."""


class CudaCopies(Copies):
    """Copies of one process to the first GPU: weights on one stream, rows on another."""

    def __init__(self, runtime: CudaRuntime) -> None:
        self._runtime = runtime
        self._weights, self._rows = self._stream(), self._stream()
        self._registered: dict[int, int] = {}
        self.lock_sources = True
        self._staging = self._locked_buffers()
        self._one_at_a_time = threading.Lock()

    @property
    def way(self) -> str:
        """Return how streamed weights are copied: from the locked file, through locked memory, or neither."""
        if self.lock_sources:
            return "registered"
        return "staged" if self._staging else "pageable"

    def copy(self, source: NDArray[Any], target: Buffer, offset: int = 0, *, repeated: bool = False) -> None:
        """Copy all bytes of a contiguous array; `repeated` sources are locked in place where possible."""
        raw = source.reshape(-1).view(np.uint8)
        if offset + len(raw) > target.num_bytes:
            raise ValueError(f"{len(raw)} bytes at {offset} are outside a buffer of {target.num_bytes}")
        address = target.address + offset
        stream = self._weights if repeated else self._rows
        in_place = repeated and self._register(raw)
        if self._staging and not in_place:
            with self._one_at_a_time:
                self._copy_staged(raw, address, stream)
        elif len(raw):
            self._start(address, raw.ctypes.data, len(raw), stream)
            self._wait(stream)

    def read(self, source: Tensor) -> NDArray[np.float32]:
        """Return floats of the device as a new float32 array."""
        raw = np.empty(source.num_bytes, np.uint8)
        if len(raw):
            self._start(raw.ctypes.data, source.address, len(raw), self._rows, TO_HOST)
            self._wait(self._rows)
        return floats_of(raw, source)

    def close(self) -> None:
        """Unlock memory and end the stream."""
        for start in self._registered:
            self._runtime.status("cudaHostUnregister", ctypes.c_void_p(start))
        self._registered.clear()
        for buffer in self._staging:
            self._runtime.status("cudaFreeHost", ctypes.c_void_p(buffer.ctypes.data))
        self._staging = []
        for stream in (self._weights, self._rows):
            self._runtime.status("cudaStreamDestroy", stream)

    def _register(self, raw: NDArray[np.uint8]) -> bool:
        """Lock the pages of an array once; return whether they are locked."""
        if not self.lock_sources:
            return False
        start = raw.ctypes.data // PAGE * PAGE
        size = -(-(raw.ctypes.data + len(raw) - start) // PAGE) * PAGE
        if self._registered.get(start, 0) >= size:
            return True
        flags = PORTABLE | READ_ONLY
        where = ctypes.c_void_p(start), ctypes.c_size_t(size)
        self.lock_sources = self._runtime.status("cudaHostRegister", *where, flags) == 0
        if self.lock_sources:
            self._registered[start] = size
        else:
            self._runtime.status("cudaGetLastError")  # else the next call would report it
        return self.lock_sources

    def _locked_buffers(self) -> list[NDArray[np.uint8]]:
        """Allocate two locked buffers; none where memory cannot be locked."""
        found: list[NDArray[np.uint8]] = []
        for _ in range(2):
            pointer = ctypes.c_void_p()
            where = ctypes.byref(pointer), ctypes.c_size_t(STAGING_BYTES)
            if self._runtime.status("cudaHostAlloc", *where, PORTABLE):
                self._runtime.status("cudaGetLastError")
                for buffer in found:
                    self._runtime.status("cudaFreeHost", ctypes.c_void_p(buffer.ctypes.data))
                return []
            found.append(host_bytes(pointer.value or 0, STAGING_BYTES))
        return found

    def _copy_staged(self, raw: NDArray[np.uint8], address: int, stream: ctypes.c_void_p) -> None:
        """Fill one locked buffer while the other is copied."""
        for turn, (start, piece) in enumerate(_pieces(raw, STAGING_BYTES)):
            buffer = self._staging[turn % 2][: len(piece)]
            np.copyto(buffer, piece)
            self._wait(stream)  # for the piece before
            self._start(address + start, buffer.ctypes.data, len(piece), stream)
        self._wait(stream)

    def _stream(self) -> ctypes.c_void_p:
        stream = ctypes.c_void_p()
        self._runtime.call("cudaStreamCreateWithFlags", ctypes.byref(stream), NON_BLOCKING)
        return stream

    def _start(
        self, target: int, source: int, size: int, stream: ctypes.c_void_p, kind: int = TO_DEVICE
    ) -> None:
        where = ctypes.c_void_p(target), ctypes.c_void_p(source), ctypes.c_size_t(size)
        self._runtime.call("cudaMemcpyAsync", *where, kind, stream)

    def _wait(self, stream: ctypes.c_void_p) -> None:
        self._runtime.call("cudaStreamSynchronize", stream)


def _pieces(raw: NDArray[np.uint8], size: int) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    for start in range(0, len(raw), size):
        yield start, raw[start : start + size]
