"""libcudart without a GPU: host memory is the device's, and every copy is real."""

from __future__ import annotations

import ctypes
from typing import Any

from stepscore.engine.cuda.cudart import CudaRuntime

FAILED = 304
"""An error code of the library."""


class FakeCudart:
    """The functions that are used; `failing` gives the codes returned instead of 0."""

    def __init__(self, **failing: int) -> None:
        self.failing = failing
        self.calls: list[str] = []
        self.allocated: dict[int, Any] = {}
        self.registered: list[tuple[int, int]] = []

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("cuda"):
            raise AttributeError(name)

        def call(*arguments: Any) -> int:
            self.calls.append(name)
            if name in self.failing:
                return self.failing[name]
            return int(getattr(self, f"on_{name}", lambda *_: 0)(*arguments) or 0)

        return call

    def on_cudaMalloc(self, pointer: Any, size: Any) -> None:
        self._allocate(pointer, size)

    def on_cudaHostAlloc(self, pointer: Any, size: Any, _flags: int) -> None:
        self._allocate(pointer, size)

    def on_cudaFree(self, pointer: Any) -> None:
        del self.allocated[pointer.value]

    on_cudaFreeHost = on_cudaFree

    def on_cudaMemcpy(self, target: Any, source: Any, size: Any, _kind: int) -> None:
        ctypes.memmove(target, source, size.value)

    def on_cudaMemcpyAsync(self, target: Any, source: Any, size: Any, kind: int, _stream: Any) -> None:
        self.on_cudaMemcpy(target, source, size, kind)

    def on_cudaHostRegister(self, pointer: Any, size: Any, _flags: int) -> None:
        self.registered.append((pointer.value, size.value))

    def on_cudaDeviceGetAttribute(self, value: Any, _number: int, _device: int) -> None:
        value._obj.value = 9

    def on_cudaMemGetInfo(self, free: Any, total: Any) -> None:
        free._obj.value, total._obj.value = 15_000_000_000, 16_000_000_000

    def cudaGetErrorString(self, code: int) -> bytes:
        return f"fake error {code}".encode()

    def _allocate(self, pointer: Any, size: Any) -> None:
        memory = (ctypes.c_uint8 * max(size.value, 1))()
        pointer._obj.value = ctypes.addressof(memory)
        self.allocated[ctypes.addressof(memory)] = memory


def fake_runtime(**failing: int) -> tuple[CudaRuntime, FakeCudart]:
    """Return a runtime whose functions return these codes, and its library."""
    library = FakeCudart(**failing)
    return CudaRuntime(library), library
