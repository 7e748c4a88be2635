"""CUDA's driver API by ctypes: load a compiled kernel into the context of ONNX Runtime and launch it."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stepscore.errors import ProviderUnavailable

Argument = ctypes.c_void_p | ctypes.c_int
"""What a kernel takes: a pointer to the device's memory, or a number."""

# Numbers of cuda.h's CUdevice_attribute.
_CAPABILITY_MAJOR, _CAPABILITY_MINOR = 75, 76

_HINT = (
    "run `nvidia-smi`: a GPU and its driver must be there; update the driver, or score with --provider cpu"
)

_RESULT, _DEVICE, _HANDLE, _UNSIGNED = ctypes.c_int, ctypes.c_int, ctypes.c_void_p, ctypes.c_uint
_SIGNATURES: Mapping[str, tuple[Any, ...]] = {
    "cuInit": (_UNSIGNED,),
    "cuDeviceGet": (ctypes.POINTER(_DEVICE), ctypes.c_int),
    "cuDeviceGetAttribute": (ctypes.POINTER(ctypes.c_int), ctypes.c_int, _DEVICE),
    "cuDevicePrimaryCtxRetain": (ctypes.POINTER(_HANDLE), _DEVICE),
    "cuDevicePrimaryCtxRelease_v2": (_DEVICE,),
    "cuCtxSetCurrent": (_HANDLE,),
    "cuModuleLoadData": (ctypes.POINTER(_HANDLE), ctypes.c_char_p),
    "cuModuleUnload": (_HANDLE,),
    "cuModuleGetFunction": (ctypes.POINTER(_HANDLE), _HANDLE, ctypes.c_char_p),
    "cuLaunchKernel": (
        *(_HANDLE, _UNSIGNED, _UNSIGNED, _UNSIGNED, _UNSIGNED, _UNSIGNED, _UNSIGNED, _UNSIGNED),
        *(_HANDLE, ctypes.POINTER(_HANDLE), ctypes.POINTER(_HANDLE)),
    ),
    "cuStreamSynchronize": (_HANDLE,),
    "cuGetErrorString": (_RESULT, ctypes.POINTER(ctypes.c_char_p)),
}


@dataclass(frozen=True, slots=True)
class Kernel:
    """A kernel on the device: handles of its module and function."""

    module: int
    function: int


class Driver:
    """One device's primary context, which ONNX Runtime and the CUDA runtime use too.

    Every method may be called from any thread, and raises ProviderUnavailable with the driver's own words. A
    launch returns before the kernel ran.
    """

    def __init__(self, library: Any, device: int = 0) -> None:
        """Take libcuda.so.1 as `library`."""
        self._library = library
        for name, types in _SIGNATURES.items():
            function = getattr(library, name)
            function.argtypes, function.restype = types, _RESULT
        self._device, self._context = _DEVICE(), _HANDLE()
        self._call("cuInit", 0)
        self._call("cuDeviceGet", self._device, device)
        self._call("cuDevicePrimaryCtxRetain", self._context, self._device)

    @classmethod
    def load(cls, device: int = 0) -> Driver:
        """Load the driver's library and retain the context of a device."""
        try:
            library = ctypes.CDLL("libcuda.so.1")
        except OSError as error:
            raise ProviderUnavailable(f"the CUDA driver cannot be loaded: {error}", hint=_HINT) from None
        return cls(library, device)

    def capability(self) -> tuple[int, int]:
        """Return the compute capability of the device, such as (9, 0)."""
        major, minor = ctypes.c_int(), ctypes.c_int()
        self._call("cuDeviceGetAttribute", major, _CAPABILITY_MAJOR, self._device)
        self._call("cuDeviceGetAttribute", minor, _CAPABILITY_MINOR, self._device)
        return major.value, minor.value

    def load_kernel(self, image: bytes, name: str) -> Kernel:
        """Load machine code and return the function of this name; `unload` frees it."""
        self._call("cuCtxSetCurrent", self._context)
        module, function = _HANDLE(), _HANDLE()
        self._call("cuModuleLoadData", module, image)
        self._call("cuModuleGetFunction", function, module, name.encode())
        return Kernel(module.value or 0, function.value or 0)

    def launch(
        self, kernel: Kernel, blocks: int, threads: int, arguments: Sequence[Argument], stream: int = 0
    ) -> None:
        """Put a kernel of `blocks` times `threads` threads on a stream (its handle; 0 is the default one)."""
        self._call("cuCtxSetCurrent", self._context)
        places = (_HANDLE * len(arguments))(*(ctypes.addressof(each) for each in arguments))
        shape = (blocks, 1, 1, threads, 1, 1, 0)
        self._call("cuLaunchKernel", kernel.function, *shape, stream, places, None)

    def synchronize(self, stream: int = 0) -> None:
        """Wait until all that was put on a stream is done; an error of its kernels appears here."""
        self._call("cuCtxSetCurrent", self._context)
        self._call("cuStreamSynchronize", stream)

    def unload(self, kernel: Kernel) -> None:
        """Free the memory of a kernel's module."""
        self._call("cuCtxSetCurrent", self._context)
        self._call("cuModuleUnload", kernel.module)

    def close(self) -> None:
        """Release the context; ONNX Runtime keeps its own hold on it."""
        self._call("cuDevicePrimaryCtxRelease_v2", self._device)

    def _call(self, function: str, *arguments: Any) -> None:
        code = getattr(self._library, function)(*arguments)
        if code:
            text = ctypes.c_char_p()
            unknown = self._library.cuGetErrorString(code, text)
            words = f"error {code}" if unknown or text.value is None else text.value.decode()
            raise ProviderUnavailable(f"{function} failed: {words}", hint=_HINT)
