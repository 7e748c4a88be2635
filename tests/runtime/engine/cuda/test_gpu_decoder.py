"""The kernel as a decoder of the engine: what it is launched with, and that it is waited for."""

from __future__ import annotations

from ctypes import c_int, c_void_p

import numpy as np
import pytest
from testing.fake_cuda import FakeDriver, FakeNvrtc

from stepscore.engine.cuda import gpu_decoder
from stepscore.engine.cuda.device import HostDevice
from stepscore.engine.cuda.driver import Driver
from stepscore.engine.cuda.gpu_decoder import GpuDecoder
from stepscore.engine.cuda.lossless_decoder import StoredDifference
from stepscore.engine.cuda.nvrtc import Nvrtc
from stepscore.engine.element_types import BFLOAT16, ONNX_TYPES

UINT8, UINT16, INT32 = ONNX_TYPES["uint8"], ONNX_TYPES["uint16"], ONNX_TYPES["int32"]


def test_the_kernel_gets_the_addresses_and_lengths_of_a_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    library, compiler = FakeDriver([*[c_void_p] * 6, *[c_int] * 3]), FakeNvrtc()
    driver, nvrtc = Driver(library), Nvrtc(compiler)
    monkeypatch.setattr(gpu_decoder.Driver, "load", lambda: driver)
    monkeypatch.setattr(gpu_decoder.Nvrtc, "load", lambda: nvrtc)
    device = HostDevice()
    stored = StoredDifference(
        reference=device.put(np.zeros((3, 10), np.uint16), BFLOAT16),
        flags=device.put(np.zeros((3, 2), np.uint8), UINT8),
        codes=device.put(np.zeros(7, np.uint8), UINT8),
        starts=device.put(np.zeros((4, 2), np.int32), INT32),
        escapes=device.put(np.zeros(5, np.uint16), UINT16),
    )
    policy = device.allocate(60).tensor((3, 10), BFLOAT16)
    decoder = GpuDecoder()
    assert not library.calls[3:]  # nothing is compiled before a matrix needs it
    for _ in range(2):
        decoder.decode(stored, policy)
        arrays = (stored.reference, stored.flags, stored.codes, stored.starts, stored.escapes, policy)
        assert library.launched == [*(each.address for each in arrays), 10, 7, 5]
        assert library.names()[-1] == "cuStreamSynchronize"
    assert library.names().count("cuModuleLoadData") == 1
