"""Decode the policy's weights from a lossless difference on a GPU."""

from __future__ import annotations

from functools import cached_property

from stepscore.engine.cuda.decode_kernel import DecodeKernel, DeviceDifference
from stepscore.engine.cuda.device import Tensor
from stepscore.engine.cuda.driver import Driver
from stepscore.engine.cuda.lossless_decoder import LosslessDecoder, StoredDifference
from stepscore.engine.cuda.nvrtc import Nvrtc


class GpuDecoder(LosslessDecoder):
    """Decodes by a kernel, which is compiled for the first matrix: other pairs need neither it nor NVRTC."""

    def decode(self, stored: StoredDifference, policy: Tensor) -> None:
        """Decode one matrix; ProviderUnavailable where the kernel cannot be compiled or run."""
        rows, columns = policy.shape
        difference = DeviceDifference(
            flags=stored.flags.address,
            codes=stored.codes.address,
            starts=stored.starts.address,
            escapes=stored.escapes.address,
            code_bytes=stored.codes.num_bytes,
            num_escapes=stored.escapes.shape[0],
        )
        self._kernel.launch(stored.reference.address, difference, policy.address, (rows, columns))
        self._driver.synchronize()

    @cached_property
    def _driver(self) -> Driver:
        return Driver.load()

    @cached_property
    def _kernel(self) -> DecodeKernel:
        return DecodeKernel.load(self._driver, Nvrtc.load())
