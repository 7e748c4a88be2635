"""NVRTC, NVIDIA's compiler for run time, by ctypes: CUDA source to the binary of one architecture."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from stepscore.errors import ProviderUnavailable

_HINT = "pip install 'stepscore[cuda]', which brings the package nvidia-cuda-nvrtc"
_SYSTEM_NAMES = ("libnvrtc.so.13", "libnvrtc.so.12")

_RESULT, _PROGRAM = ctypes.c_int, ctypes.c_void_p
_SIGNATURES: Mapping[str, tuple[Any, ...]] = {
    "nvrtcCreateProgram": (
        *(ctypes.POINTER(_PROGRAM), ctypes.c_char_p, ctypes.c_char_p),
        *(ctypes.c_int, ctypes.POINTER(ctypes.c_char_p), ctypes.POINTER(ctypes.c_char_p)),
    ),
    "nvrtcCompileProgram": (_PROGRAM, ctypes.c_int, ctypes.POINTER(ctypes.c_char_p)),
    "nvrtcGetProgramLogSize": (_PROGRAM, ctypes.POINTER(ctypes.c_size_t)),
    "nvrtcGetProgramLog": (_PROGRAM, ctypes.c_char_p),
    "nvrtcGetCUBINSize": (_PROGRAM, ctypes.POINTER(ctypes.c_size_t)),
    "nvrtcGetCUBIN": (_PROGRAM, ctypes.c_char_p),
    "nvrtcDestroyProgram": (ctypes.POINTER(_PROGRAM),),
}


class Nvrtc:
    """The functions of a libnvrtc that compile one source."""

    def __init__(self, library: Any) -> None:
        self._library = library
        for name, types in _SIGNATURES.items():
            function = getattr(library, name)
            function.argtypes, function.restype = types, _RESULT
        library.nvrtcGetErrorString.argtypes = (_RESULT,)
        library.nvrtcGetErrorString.restype = ctypes.c_char_p

    @classmethod
    def load(cls) -> Nvrtc:
        """Load the newest libnvrtc of the nvidia packages, else the system's.

        Raises ProviderUnavailable where there is none.
        """
        faults = []
        for name in (*map(str, _packaged()), *_SYSTEM_NAMES):
            try:
                return cls(ctypes.CDLL(name))
            except OSError as error:
                faults.append(str(error))
        raise ProviderUnavailable(f"NVRTC cannot be loaded: {'; '.join(faults)}", hint=_HINT)

    def compile(
        self, source: str, name: str, capability: tuple[int, int], macros: Mapping[str, int]
    ) -> bytes:
        """Return the machine code (cubin) of `source` for a compute capability, such as (9, 0).

        Machine code, unlike PTX, also loads where the driver has an earlier minor version. `name` is the file
        of errors. Raises ProviderUnavailable with NVRTC's log if the source does not compile.
        """
        major, minor = capability
        options = [f"--gpu-architecture=sm_{major}{minor}"]
        options += [f"--define-macro={key}={value}" for key, value in macros.items()]
        program = _PROGRAM()
        self._call("nvrtcCreateProgram", program, source.encode(), name.encode(), 0, None, None)
        try:
            texts = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
            code = self._library.nvrtcCompileProgram(program, len(options), texts)
            if code:
                log = self._bytes("nvrtcGetProgramLog", program).decode(errors="replace")
                raise self._error("nvrtcCompileProgram", code, log.strip("\0\n"))
            return self._bytes("nvrtcGetCUBIN", program)
        finally:
            self._library.nvrtcDestroyProgram(program)

    def _bytes(self, function: str, program: ctypes.c_void_p) -> bytes:
        size = ctypes.c_size_t()
        self._call(f"{function}Size", program, size)
        buffer = ctypes.create_string_buffer(size.value)
        self._call(function, program, buffer)
        return buffer.raw

    def _call(self, function: str, *arguments: Any) -> None:
        code = getattr(self._library, function)(*arguments)
        if code:
            raise self._error(function, code)

    def _error(self, function: str, code: int, log: str = "") -> ProviderUnavailable:
        text = self._library.nvrtcGetErrorString(code).decode()
        return ProviderUnavailable(f"{function} failed: {text}{log and f': {log}'}", hint=_HINT)


def _packaged() -> list[Path]:
    """Return every libnvrtc of the nvidia packages, newest version first."""
    spec = find_spec("nvidia")
    folders = [Path(each) for each in spec.submodule_search_locations or ()] if spec else []
    found = [path for folder in folders for path in folder.glob("*/lib/libnvrtc.so.*")]
    return sorted(found, key=lambda path: [int(part) for part in re.findall(r"\d+", path.name)], reverse=True)
