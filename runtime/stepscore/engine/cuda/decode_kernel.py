"""Decode of the lossless difference on a GPU: compiled when it is loaded, launched once a matrix."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from importlib import resources
from typing import Self

from stepscore.engine.cuda.driver import Argument, Driver, Kernel
from stepscore.engine.cuda.nvrtc import Nvrtc

_FILE = "lossless.cu"
THREADS = 128
"""Of a block; 1,024 columns at a time, and rows of models have 896 or more."""


@dataclass(frozen=True, slots=True)
class DeviceDifference:
    """Addresses on the device of the arrays of a LosslessDifference, and the lengths of two of them."""

    flags: int
    codes: int
    starts: int
    escapes: int
    code_bytes: int
    num_escapes: int


def source() -> str:
    """Return the kernel's CUDA source, which takes the number of threads of a block as the macro THREADS."""
    return resources.files("stepscore.engine.cuda").joinpath("kernels", _FILE).read_text(encoding="utf-8")


class DecodeKernel:
    """The kernel decode_lossless on one device."""

    def __init__(self, driver: Driver, kernel: Kernel) -> None:
        self._driver, self._kernel = driver, kernel

    @classmethod
    def load(cls, driver: Driver, nvrtc: Nvrtc) -> Self:
        """Compile the kernel for the device and load it. Raises ProviderUnavailable where that fails."""
        image = nvrtc.compile(source(), _FILE, driver.capability(), {"THREADS": THREADS})
        return cls(driver, driver.load_kernel(image, "decode_lossless"))

    def launch(
        self,
        reference: int,
        difference: DeviceDifference,
        policy: int,
        shape: tuple[int, int],
        stream: int = 0,
    ) -> None:
        """Put the decode of a matrix, shape (rows, columns), on a stream (its handle; 0 is the default one).

        `reference` and `policy` are addresses on the device of 16-bit patterns, and may be the same. The
        decode is fastest where both are multiples of 16 and `columns` one of 8. A damaged difference gives
        wrong numbers, but nothing is read or written out of the arrays.
        """
        rows, columns = shape
        if not rows:
            return
        arrays = (
            reference,
            difference.flags,
            difference.codes,
            difference.starts,
            difference.escapes,
            policy,
        )
        arguments: list[Argument] = [ctypes.c_void_p(address) for address in arrays]
        arguments += [ctypes.c_int(n) for n in (columns, difference.code_bytes, difference.num_escapes)]
        self._driver.launch(self._kernel, rows, THREADS, arguments, stream)

    def close(self) -> None:
        """Free the kernel's memory on the device."""
        self._driver.unload(self._kernel)
