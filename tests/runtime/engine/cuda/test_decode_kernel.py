"""The kernel that decodes on a GPU: there, and on the CPU with the sanitizers of g++."""

from __future__ import annotations

from collections.abc import Callable
from ctypes import c_int, c_void_p
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from testing.fake_cuda import CUBIN, FUNCTION, MODULE, FakeDriver, FakeNvrtc
from testing.kernel_on_host import THREADS as HOST_THREADS
from testing.kernel_on_host import Sanitizer, compile_kernel, run_kernel

from stepscore.engine.cuda.decode_kernel import THREADS, DecodeKernel, DeviceDifference
from stepscore.engine.cuda.driver import Driver
from stepscore.engine.cuda.lossless import LosslessDifference, ordered
from stepscore.engine.cuda.nvrtc import Nvrtc
from stepscore_export.quantization.lossless import encode, joined

Patterns = NDArray[np.uint16]
TILE = 8 * HOST_THREADS
SHAPES = [(1, 1), (3, 0), (5, 7), (4, 8), (3, TILE - 1), (2, TILE), (2, TILE + 8), (3, 2 * TILE + 13)]


def example(rows: int, columns: int, changed: float = 0.5) -> tuple[Patterns, Patterns]:
    """Two matrices of any patterns; of the changed weights half are a few steps away."""
    random = np.random.default_rng([rows, columns])
    reference = random.integers(0, 1 << 16, (rows, columns), dtype=np.uint16)
    steps = random.integers(-7, 9, reference.shape).astype(np.uint16)
    near = ordered(ordered(reference).view(np.uint16) + steps).view(np.uint16)
    far = random.integers(0, 1 << 16, reference.shape, dtype=np.uint16)
    which = random.random(reference.shape)
    return reference, np.where(which < changed / 2, near, np.where(which < changed, far, reference))


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Sanitizer], Path]:
    return cache(partial(compile_kernel, tmp_path_factory.mktemp("kernel")))


@pytest.fixture(params=list(Sanitizer))
def program(request: pytest.FixtureRequest, compiled: Callable[[Sanitizer], Path]) -> Path:
    return compiled(request.param)


@pytest.fixture
def bounded(compiled: Callable[[Sanitizer], Path]) -> Path:
    return compiled(Sanitizer.BOUNDS)


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
def test_kernel_decodes_bit_for_bit(program: Path, shape: tuple[int, int]) -> None:
    reference, policy = example(*shape)
    np.testing.assert_array_equal(run_kernel(program, reference, joined([encode(reference, policy)])), policy)


@pytest.mark.slow
@pytest.mark.parametrize("changed", [0, 1])
def test_kernel_decodes_where_nothing_or_everything_changed(bounded: Path, changed: float) -> None:
    reference, policy = example(3, TILE + 5, changed)
    np.testing.assert_array_equal(run_kernel(bounded, reference, joined([encode(reference, policy)])), policy)


@pytest.mark.slow
def test_kernel_decodes_matrices_out_of_alignment(bounded: Path) -> None:
    reference, policy = example(3, TILE)
    difference = joined([encode(reference, policy)])
    np.testing.assert_array_equal(run_kernel(bounded, reference, difference, offset=3), policy)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["flags", "codes", "starts", "escapes"])
@pytest.mark.parametrize("fill", [0, 1, -1])
def test_kernel_stays_in_bounds_of_damaged_data(bounded: Path, name: str, fill: int) -> None:
    """The sanitizer ends the program at the first access outside the arrays."""
    reference, policy = example(4, TILE + 9)
    difference = joined([encode(reference, policy)])
    array = getattr(difference, name)
    damaged = replace(difference, **{name: np.full_like(array, np.array(fill).astype(array.dtype))})
    assert run_kernel(bounded, reference, damaged).shape == reference.shape


@pytest.mark.slow
@pytest.mark.parametrize("start", [-(2**31), -1, 2**31 - 1])
def test_kernel_stays_in_bounds_of_a_damaged_start(bounded: Path, start: int) -> None:
    reference, policy = example(4, TILE + 9)
    difference = joined([encode(reference, policy)])
    difference.starts[1] = start
    assert run_kernel(bounded, reference, difference).shape == reference.shape


@pytest.mark.slow
def test_bits_of_flags_behind_the_last_column_mean_nothing(bounded: Path) -> None:
    reference, policy = example(3, 13)
    difference = joined([encode(reference, policy)])
    difference.flags[:, -1] |= 0xE0
    np.testing.assert_array_equal(run_kernel(bounded, reference, difference), policy)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["codes", "escapes"])
def test_kernel_stays_in_bounds_of_shortened_arrays(bounded: Path, name: str) -> None:
    reference, policy = example(4, TILE + 9)
    difference = joined([encode(reference, policy)])
    for length in (0, 1, len(getattr(difference, name)) - 1):
        short = replace(difference, **{name: getattr(difference, name)[:length]})
        assert run_kernel(bounded, reference, short).shape == reference.shape


def test_kernel_is_compiled_for_the_device_and_loaded_by_its_name() -> None:
    driver, nvrtc = FakeDriver(), FakeNvrtc()
    DecodeKernel.load(Driver(driver), Nvrtc(nvrtc)).close()
    assert nvrtc.options == [b"--gpu-architecture=sm_89", f"--define-macro=THREADS={THREADS}".encode()]
    assert driver.loaded == CUBIN
    assert ("cuModuleGetFunction", MODULE, b"decode_lossless") in driver.calls
    assert driver.calls[-1] == ("cuModuleUnload", MODULE)


def test_launch_gives_a_block_a_row_and_the_arrays_in_the_kernels_order() -> None:
    library = FakeDriver([*[c_void_p] * 6, *[c_int] * 3])
    kernel = DecodeKernel.load(Driver(library), Nvrtc(FakeNvrtc()))
    difference = DeviceDifference(
        flags=0x20, codes=0x30, starts=0x40, escapes=0x50, code_bytes=7, num_escapes=9
    )
    kernel.launch(0x10, difference, 0x60, (4864, 896), stream=5)
    assert library.calls[-1] == ("cuLaunchKernel", FUNCTION, 4864, 1, 1, THREADS, 1, 1, 0, 5)
    assert library.launched == [0x10, 0x20, 0x30, 0x40, 0x50, 0x60, 896, 7, 9]


def test_launch_for_no_rows_does_nothing() -> None:
    """CUDA rejects a grid of no blocks."""
    library = FakeDriver()
    kernel = DecodeKernel.load(Driver(library), Nvrtc(FakeNvrtc()))
    kernel.launch(0x10, DeviceDifference(0, 0, 0, 0, 0, 0), 0x60, (0, 896))
    assert "cuLaunchKernel" not in library.names()


@pytest.mark.cuda
@pytest.mark.usefixtures("cuda")
@pytest.mark.parametrize("shape", [(5, 7), (4864, 896), (300, 4861), (64, 18944)])
def test_gpu_decodes_bit_for_bit(shape: tuple[int, int]) -> None:
    reference, policy = example(*shape)
    difference = joined([encode(reference, policy)])
    found = decoded_on_gpu(reference, difference)
    np.testing.assert_array_equal(found, policy)


def decoded_on_gpu(reference: Patterns, difference: LosslessDifference) -> Patterns:
    def uploaded(array: NDArray[Any]) -> ort.OrtValue:
        data = np.frombuffer(array.tobytes() or b"\0", np.uint8)
        return ort.OrtValue.ortvalue_from_numpy(data, "cuda", 0)

    values = {name: uploaded(getattr(difference, name)) for name in ("flags", "codes", "starts", "escapes")}
    matrices = [uploaded(reference), uploaded(np.zeros_like(reference))]
    driver = Driver.load()
    kernel = DecodeKernel.load(driver, Nvrtc.load())
    on_device = DeviceDifference(
        **{name: value.data_ptr() for name, value in values.items()},
        code_bytes=len(difference.codes),
        num_escapes=len(difference.escapes),
    )
    kernel.launch(matrices[0].data_ptr(), on_device, matrices[1].data_ptr(), reference.shape)
    driver.synchronize()
    kernel.close()
    driver.close()
    return matrices[1].numpy().view(np.uint16).reshape(reference.shape)
