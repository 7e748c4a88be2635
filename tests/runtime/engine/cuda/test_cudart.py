"""Copies by the CUDA runtime: locked in place, through locked buffers, or pageable; its errors as ours."""

from __future__ import annotations

import gc
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from testing.fake_cudart import FAILED, fake_runtime

from stepscore.engine.cuda import cudart
from stepscore.engine.cuda.cudart import CudaCopies, CudaRuntime, GpuDevice
from stepscore.engine.element_types import FLOAT, FLOAT16
from stepscore.errors import DoesNotFit, ProviderUnavailable


@pytest.fixture
def source(monkeypatch: pytest.MonkeyPatch) -> NDArray[np.uint8]:
    """More bytes than three staging buffers hold."""
    monkeypatch.setattr(cudart, "STAGING_BYTES", 1000)
    return np.random.default_rng(0).integers(0, 256, 3_333, np.uint8)


def copied(failing: dict[str, int], source: NDArray[Any], *, repeated: bool) -> str:
    """Copy into the middle of a buffer, check every byte, and return the way."""
    runtime, _ = fake_runtime(**failing)
    device, copies = GpuDevice(runtime), CudaCopies(runtime)
    buffer = device.allocate(source.nbytes + 100)
    copies.copy(source, buffer, 50, repeated=repeated)
    tensor = buffer.tensor((source.nbytes // 4,), FLOAT, 50)
    np.testing.assert_array_equal(
        copies.read(tensor).view(np.uint8), source.view(np.uint8)[: 4 * tensor.shape[0]]
    )
    way = copies.way
    copies.close()
    return way


def test_streamed_weights_are_locked_in_place_once(source: NDArray[np.uint8]) -> None:
    runtime, library = fake_runtime()
    device, copies = GpuDevice(runtime), CudaCopies(runtime)
    buffer = device.allocate(source.nbytes)
    for _ in range(3):
        copies.copy(source, buffer, repeated=True)
    assert copies.way == "registered"
    assert library.calls.count("cudaHostRegister") == 1
    ((start, size),) = library.registered
    assert start <= source.ctypes.data < source.ctypes.data + source.nbytes <= start + size
    assert start % 4096 == size % 4096 == 0
    copies.close()
    assert library.calls.count("cudaHostUnregister") == 1


@pytest.mark.parametrize("repeated", [False, True])
@pytest.mark.parametrize(
    ("failing", "way"),
    [
        ({}, "registered"),
        ({"cudaHostRegister": FAILED}, "staged"),
        ({"cudaHostRegister": FAILED, "cudaHostAlloc": FAILED}, "pageable"),
    ],
)
def test_every_byte_arrives_in_every_way(
    source: NDArray[np.uint8], failing: dict[str, int], way: str, repeated: bool
) -> None:
    found = copied(failing, source, repeated=repeated)
    assert found == way or not repeated  # what is copied once is not locked


def test_a_refused_lock_is_not_asked_for_again(source: NDArray[np.uint8]) -> None:
    runtime, library = fake_runtime(cudaHostRegister=FAILED)
    device, copies = GpuDevice(runtime), CudaCopies(runtime)
    buffer = device.allocate(source.nbytes)
    for _ in range(3):
        copies.copy(source, buffer, repeated=True)
    assert library.calls.count("cudaHostRegister") == 1
    assert "cudaGetLastError" in library.calls


def test_the_second_locked_buffer_that_cannot_be_had_gives_the_first_one_back() -> None:
    runtime, library = fake_runtime()
    allocate, asked = library.on_cudaHostAlloc, []

    def once(pointer: Any, size: Any, flags: int) -> int:
        asked.append(size.value)
        if len(asked) > 1:
            return FAILED
        allocate(pointer, size, flags)
        return 0

    library.on_cudaHostAlloc = once  # type: ignore[assignment]
    copies = CudaCopies(runtime)
    assert not library.allocated
    copies.close()


def test_nothing_is_copied_past_the_end_of_a_buffer(source: NDArray[np.uint8]) -> None:
    runtime, _ = fake_runtime()
    device, copies = GpuDevice(runtime), CudaCopies(runtime)
    with pytest.raises(ValueError, match="outside a buffer of 3333"):
        copies.copy(source, device.allocate(source.nbytes), 1)


def test_memory_of_the_gpu_is_counted_and_given_back() -> None:
    runtime, library = fake_runtime()
    device = GpuDevice(runtime)
    buffer = device.allocate(1000)
    tensor = device.put(np.arange(6, dtype=np.float16).reshape(2, 3), FLOAT16)
    assert (device.num_bytes, len(library.allocated)) == (1000, 2)
    assert CudaCopies(runtime).read(tensor).tolist() == [[0, 1, 2], [3, 4, 5]]
    device.give_back(buffer)
    del buffer, tensor
    gc.collect()
    assert device.num_bytes == 0
    assert library.calls.count("cudaFree") == 2


def test_a_full_gpu_and_another_fault_are_told_apart() -> None:
    with pytest.raises(DoesNotFit, match="out of memory: cudaMalloc failed"):
        GpuDevice(fake_runtime(cudaMalloc=2)[0]).allocate(10)
    with pytest.raises(ProviderUnavailable, match="cudaMalloc failed: fake error 304"):
        GpuDevice(fake_runtime(cudaMalloc=FAILED)[0]).allocate(10)


def test_facts_of_the_device() -> None:
    runtime, _ = fake_runtime()
    assert runtime.attribute(cudart.MAJOR_CAPABILITY) == 9
    assert runtime.free_bytes() == 15_000_000_000


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cudart, "LIBRARIES", ("libcudart.so.0",))
    with pytest.raises(ProviderUnavailable, match=r"none of libcudart\.so\.0 can be loaded"):
        CudaRuntime.load()
