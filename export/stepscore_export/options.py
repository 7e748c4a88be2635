"""What an export was asked for, and what follows from it."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from stepscore.choices import DEFAULT_BETA, Precision, Target
from stepscore.errors import ExportError

_STORAGE = {
    Precision.FP32: ir.DataType.FLOAT,
    Precision.FP16: ir.DataType.FLOAT16,
    Precision.BF16: ir.DataType.BFLOAT16,
}
_BITS = {Precision.INT8: 8, Precision.INT4: 4}


@dataclass(frozen=True, slots=True)
class ExportOptions:
    """The choices that shape the numbers of a pair."""

    precision: Precision = Precision.FP32
    target: Target = Target.CPU
    block_size: int = 32
    beta: float = DEFAULT_BETA

    def __post_init__(self) -> None:
        if self.block_size not in (16, 32, 64, 128, 256):  # what MatMulNBits has kernels for
            raise ExportError(f"block size {self.block_size} is not one of 16, 32, 64, 128, 256")
        if self.target is Target.CUDA and self.precision is Precision.FP32:
            raise ExportError(
                "fp32 has no attention kernel on CUDA", hint="take --precision bf16 or fp16, or --target cpu"
            )
        if not 0 < self.beta < float("inf"):
            raise ExportError(f"beta is {self.beta}; it must be a positive number")

    @property
    def bits(self) -> int | None:
        """Bits of a block-quantised linear weight; None where weights are stored as floats."""
        return _BITS.get(self.precision)

    @property
    def compute(self) -> ir.DataType:
        """What activations are: fp32 on the CPU; on CUDA the storage type, fp16 for integer weights."""
        if self.target is Target.CPU:
            return ir.DataType.FLOAT
        return _STORAGE.get(self.precision, ir.DataType.FLOAT16)

    @property
    def storage(self) -> ir.DataType:
        """What a matrix that is not quantised is stored in."""
        return _STORAGE.get(self.precision, self.compute)
