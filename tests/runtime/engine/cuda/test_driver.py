"""The driver API, called as cuda.h says; without a GPU the library is a fake one."""

from __future__ import annotations

import ctypes
from ctypes import c_int, c_void_p

import pytest
from testing.fake_cuda import CONTEXT, CUBIN, FUNCTION, KNOWN, MODULE, UNKNOWN, FakeDriver

from stepscore.engine.cuda.driver import Driver, Kernel
from stepscore.errors import ProviderUnavailable

KERNEL = Kernel(MODULE, FUNCTION)


@pytest.fixture
def library() -> FakeDriver:
    return FakeDriver([c_void_p, c_int])


def use(driver: Driver) -> None:
    """Call every method once."""
    driver.capability()
    kernel = driver.load_kernel(CUBIN, "decode")
    driver.launch(kernel, 1, 1, [c_void_p(), c_int()])
    driver.synchronize()
    driver.unload(kernel)
    driver.close()


def test_primary_context_of_the_device_is_retained_and_released(library: FakeDriver) -> None:
    Driver(library).close()
    assert library.calls == [
        *[("cuInit", 0), ("cuDeviceGet", 0), ("cuDevicePrimaryCtxRetain", 3)],
        ("cuDevicePrimaryCtxRelease_v2", 3),
    ]


def test_second_device_can_be_chosen(library: FakeDriver) -> None:
    Driver(library, device=1)
    assert library.calls[-1] == ("cuDevicePrimaryCtxRetain", 4)


def test_capability_is_that_of_the_device(library: FakeDriver) -> None:
    assert Driver(library).capability() == (8, 9)
    assert library.calls[-2:] == [("cuDeviceGetAttribute", 75, 3), ("cuDeviceGetAttribute", 76, 3)]


def test_kernel_is_the_function_of_that_name_in_the_image(library: FakeDriver) -> None:
    assert Driver(library).load_kernel(CUBIN, "decode") == KERNEL
    assert library.loaded == CUBIN
    assert library.calls[-1] == ("cuModuleGetFunction", MODULE, b"decode")


def test_launch_passes_blocks_threads_stream_and_arguments(library: FakeDriver) -> None:
    address, stream = 0x7FFF_1234_5678_9ABC, 0x7F11_0000_0000
    Driver(library).launch(KERNEL, 152_064, 128, [c_void_p(address), c_int(-5)], stream)
    assert library.calls[-1] == ("cuLaunchKernel", FUNCTION, 152_064, 1, 1, 128, 1, 1, 0, stream)
    assert library.launched == [address, -5]


def test_launch_and_wait_use_the_default_stream_unless_another_is_named(library: FakeDriver) -> None:
    driver = Driver(library)
    driver.launch(KERNEL, 1, 1, [c_void_p(8), c_int(1)])
    assert library.calls[-1][-1] is None
    driver.synchronize()
    assert library.calls[-1] == ("cuStreamSynchronize", None)
    driver.synchronize(77)
    assert library.calls[-1] == ("cuStreamSynchronize", 77)


@pytest.mark.parametrize(
    "function",
    ["cuModuleLoadData", "cuModuleGetFunction", "cuLaunchKernel", "cuStreamSynchronize", "cuModuleUnload"],
)
def test_context_is_current_before_what_needs_one(library: FakeDriver, function: str) -> None:
    """A thread that runs a session for the first time has none."""
    use(Driver(library))
    before = [name for name in library.names()[: library.names().index(function)] if "Module" not in name]
    assert before[-1] == "cuCtxSetCurrent"
    assert ("cuCtxSetCurrent", CONTEXT) in library.calls


@pytest.mark.parametrize("function", [name for name in FakeDriver.signatures if name != "cuGetErrorString"])
def test_error_of_any_function_is_raised_in_the_drivers_words(library: FakeDriver, function: str) -> None:
    library.failing[function] = KNOWN
    with pytest.raises(ProviderUnavailable, match=f"{function} failed: out of everything") as caught:
        use(Driver(library))
    assert "nvidia-smi" in str(caught.value.hint)


@pytest.mark.parametrize("failing", [{}, {"cuGetErrorString": 1}])
def test_error_that_the_driver_does_not_know_is_a_number(
    library: FakeDriver, failing: dict[str, int]
) -> None:
    library.failing = {"cuInit": UNKNOWN, **failing}
    with pytest.raises(ProviderUnavailable, match="cuInit failed: error 43"):
        Driver(library)


def test_machine_without_a_driver_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", missing)
    with pytest.raises(ProviderUnavailable, match=r"cannot be loaded: libcuda\.so\.1: cannot open"):
        Driver.load()
