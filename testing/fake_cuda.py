"""libcuda and libnvrtc without a GPU: C functions, typed as in cuda.h and nvrtc.h, that note their calls."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from ctypes import POINTER, c_char_p, c_int, c_size_t, c_uint, c_void_p
from functools import partial
from typing import Any, ClassVar

CONTEXT, MODULE, FUNCTION, PROGRAM = 0x7F00_0000_1000, 0x7F00_0000_2000, 0x7F00_0000_3000, 0x7F00_0000_4000
CUBIN, LOG = b"\x7fELF\0machine\0code", b"lossless.cu(3): error: oops\n"
KNOWN, UNKNOWN = 42, 43
"""Error codes: one whose text the libraries know, and one whose text the driver does not know."""


class FakeLibrary:
    """Calls of `signatures`, noted in `calls` with their numbers and texts.

    A method on_NAME fills the outputs of a function. `failing` gives the codes returned instead of 0.
    """

    signatures: ClassVar[Mapping[str, Sequence[Any]]]

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.failing: dict[str, int] = {}
        for name, types in self.signatures.items():
            setattr(self, name, ctypes.CFUNCTYPE(c_int, *types)(partial(self._called, name)))

    def names(self) -> list[str]:
        """Return the functions called, in order."""
        return [call[0] for call in self.calls]

    def _called(self, name: str, *arguments: Any) -> int:
        plain = [each for each in arguments if each is None or isinstance(each, int | bytes)]
        self.calls.append((name, *plain))
        if name in self.failing:
            return self.failing[name]
        getattr(self, f"on_{name}", lambda *_: None)(*arguments)
        return 0


class FakeDriver(FakeLibrary):
    """libcuda of a machine whose device 0 is called 3 and has capability 8.9.

    `loaded` is the image last loaded; `launched` the arguments last launched, of the types `parameters`.
    """

    signatures: ClassVar = {
        "cuInit": [c_uint],
        "cuDeviceGet": [POINTER(c_int), c_int],
        "cuDeviceGetAttribute": [POINTER(c_int), c_int, c_int],
        "cuDevicePrimaryCtxRetain": [POINTER(c_void_p), c_int],
        "cuDevicePrimaryCtxRelease_v2": [c_int],
        "cuCtxSetCurrent": [c_void_p],
        "cuModuleLoadData": [POINTER(c_void_p), c_void_p],
        "cuModuleUnload": [c_void_p],
        "cuModuleGetFunction": [POINTER(c_void_p), c_void_p, c_char_p],
        "cuLaunchKernel": [c_void_p, *[c_uint] * 7, c_void_p, POINTER(c_void_p), POINTER(c_void_p)],
        "cuStreamSynchronize": [c_void_p],
        "cuGetErrorString": [c_int, POINTER(c_char_p)],
    }

    def __init__(self, parameters: Sequence[Any] = ()) -> None:
        super().__init__()
        self.parameters = parameters
        self.loaded = b""
        self.launched: list[int] = []

    def on_cuDeviceGet(self, out: Any, ordinal: int) -> None:
        out[0] = 3 + ordinal

    def on_cuDeviceGetAttribute(self, out: Any, attribute: int, device: int) -> None:
        out[0] = {75: 8, 76: 9}[attribute]

    def on_cuDevicePrimaryCtxRetain(self, out: Any, device: int) -> None:
        out[0] = CONTEXT

    def on_cuModuleLoadData(self, out: Any, image: int) -> None:
        out[0] = MODULE
        self.loaded = ctypes.string_at(image, len(CUBIN))

    def on_cuModuleGetFunction(self, out: Any, module: int, name: bytes) -> None:
        out[0] = FUNCTION

    def on_cuLaunchKernel(self, *arguments: Any) -> None:
        places = arguments[9]
        self.launched = [kind.from_address(places[i]).value for i, kind in enumerate(self.parameters)]

    def on_cuGetErrorString(self, code: int, out: Any) -> None:
        out[0] = b"out of everything" if code == KNOWN else None


class FakeNvrtc(FakeLibrary):
    """libnvrtc that compiles everything to CUBIN, with LOG; `options` are those last given."""

    signatures: ClassVar = {
        "nvrtcCreateProgram": [
            *(POINTER(c_void_p), c_char_p, c_char_p, c_int),
            *(POINTER(c_char_p), POINTER(c_char_p)),
        ],
        "nvrtcCompileProgram": [c_void_p, c_int, POINTER(c_char_p)],
        "nvrtcGetProgramLogSize": [c_void_p, POINTER(c_size_t)],
        "nvrtcGetProgramLog": [c_void_p, c_void_p],
        "nvrtcGetCUBINSize": [c_void_p, POINTER(c_size_t)],
        "nvrtcGetCUBIN": [c_void_p, c_void_p],
        "nvrtcDestroyProgram": [POINTER(c_void_p)],
    }

    def __init__(self) -> None:
        super().__init__()
        self.options: list[bytes] = []
        self.alive = 0
        self.nvrtcGetErrorString = ctypes.CFUNCTYPE(c_void_p, c_int)(self._error_string)
        self._text = ctypes.create_string_buffer(b"NVRTC_ERROR_OF_A_TEST")

    def on_nvrtcCreateProgram(self, out: Any, *_: Any) -> None:
        out[0] = PROGRAM
        self.alive += 1

    def on_nvrtcCompileProgram(self, program: int, count: int, options: Any) -> None:
        self.options = options[:count]

    def on_nvrtcGetProgramLogSize(self, program: int, out: Any) -> None:
        out[0] = len(LOG) + 1

    def on_nvrtcGetProgramLog(self, program: int, out: int) -> None:
        ctypes.memmove(out, LOG + b"\0", len(LOG) + 1)

    def on_nvrtcGetCUBINSize(self, program: int, out: Any) -> None:
        out[0] = len(CUBIN)

    def on_nvrtcGetCUBIN(self, program: int, out: int) -> None:
        ctypes.memmove(out, CUBIN, len(CUBIN))

    def on_nvrtcDestroyProgram(self, program: Any) -> None:
        assert program[0] == PROGRAM
        self.alive -= 1

    def _error_string(self, code: int) -> int:
        return ctypes.addressof(self._text)
