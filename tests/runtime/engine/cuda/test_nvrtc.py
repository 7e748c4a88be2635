"""NVRTC, called as nvrtc.h says, by a fake library; and the real one where its package is installed."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

import pytest
from testing.fake_cuda import CUBIN, KNOWN, FakeNvrtc

from stepscore.engine.cuda.decode_kernel import THREADS, source
from stepscore.engine.cuda.nvrtc import Nvrtc
from stepscore.errors import ProviderUnavailable


@pytest.fixture
def library() -> FakeNvrtc:
    return FakeNvrtc()


@pytest.fixture
def nvrtc() -> Nvrtc:
    """The real one."""
    try:
        return Nvrtc.load()
    except ProviderUnavailable as error:
        pytest.skip(f"no NVRTC: {error}")


def compile_kernel(nvrtc: Nvrtc, capability: tuple[int, int] = (8, 9)) -> bytes:
    return nvrtc.compile("source", "name.cu", capability, {"THREADS": 128})


def test_source_is_compiled_for_the_capability_with_its_macros(library: FakeNvrtc) -> None:
    assert compile_kernel(Nvrtc(library)) == CUBIN
    assert library.options == [b"--gpu-architecture=sm_89", b"--define-macro=THREADS=128"]
    assert library.calls[0] == ("nvrtcCreateProgram", b"source", b"name.cu", 0)


def test_program_is_destroyed_after_success_and_failure(library: FakeNvrtc) -> None:
    compile_kernel(Nvrtc(library))
    assert library.alive == 0
    library.failing["nvrtcCompileProgram"] = KNOWN
    with pytest.raises(ProviderUnavailable):
        compile_kernel(Nvrtc(library))
    assert library.alive == 0


def test_source_that_does_not_compile_is_reported_with_the_log(library: FakeNvrtc) -> None:
    library.failing["nvrtcCompileProgram"] = KNOWN
    with pytest.raises(ProviderUnavailable) as caught:
        compile_kernel(Nvrtc(library))
    assert caught.value.message == (
        "nvrtcCompileProgram failed: NVRTC_ERROR_OF_A_TEST: lossless.cu(3): error: oops"
    )


@pytest.mark.parametrize("function", ["nvrtcCreateProgram", "nvrtcGetCUBINSize", "nvrtcGetCUBIN"])
def test_error_of_a_function_is_raised_in_the_librarys_words(library: FakeNvrtc, function: str) -> None:
    library.failing[function] = KNOWN
    with pytest.raises(ProviderUnavailable, match=f"{function} failed: NVRTC_ERROR_OF_A_TEST$"):
        compile_kernel(Nvrtc(library))


def test_packages_newest_library_is_tried_before_the_systems(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for folder, name in (("cuda_nvrtc", "libnvrtc.so.9"), ("cu13", "libnvrtc.so.13")):
        path = tmp_path / "nvidia" / folder / "lib" / name
        path.parent.mkdir(parents=True)
        path.touch()
        path.with_name("libnvrtc-builtins.so.13.5").touch()
    tried = []

    def missing(name: str) -> None:
        tried.append(name)
        raise OSError(f"{name} is missing")

    monkeypatch.delitem(sys.modules, "nvidia", raising=False)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.setattr(ctypes, "CDLL", missing)
    with pytest.raises(ProviderUnavailable, match=r"so\.12 is missing$"):
        Nvrtc.load()
    packaged = [
        f"{tmp_path}/nvidia/cu13/lib/libnvrtc.so.13",
        f"{tmp_path}/nvidia/cuda_nvrtc/lib/libnvrtc.so.9",
    ]
    assert tried == [*packaged, "libnvrtc.so.13", "libnvrtc.so.12"]


@pytest.mark.slow
@pytest.mark.parametrize("capability", [(7, 5), (8, 0), (9, 0)])
def test_decode_kernel_compiles_for_each_generation(nvrtc: Nvrtc, capability: tuple[int, int]) -> None:
    image = nvrtc.compile(source(), "lossless.cu", capability, {"THREADS": THREADS})
    assert image.startswith(b"\x7fELF")
    assert b"decode_lossless" in image


@pytest.mark.slow
def test_fault_in_a_source_is_named_with_its_line(nvrtc: Nvrtc) -> None:
    with pytest.raises(ProviderUnavailable, match=r"NVRTC_ERROR_COMPILATION: fault\.cu\(2\): error"):
        nvrtc.compile("\nint f() { return oops; }", "fault.cu", (9, 0), {})
