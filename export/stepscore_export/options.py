"""Options of an export, checked against each other, and what follows from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from stepscore.enums import (
    DEFAULT_BETA,
    Activations,
    Coding,
    DifferencePrecision,
    Exporter,
    Format,
    Precision,
    Products,
    Target,
)
from stepscore.errors import ExportError

_STORAGE = {
    Precision.FP32: ir.DataType.FLOAT,
    Precision.FP16: ir.DataType.FLOAT16,
    Precision.BF16: ir.DataType.BFLOAT16,
}
_BITS = {Precision.INT8: 8, Precision.INT4: 4}
_DIFFERENCE_BITS = {DifferencePrecision.INT8: 8, DifferencePrecision.INT4: 4, DifferencePrecision.INT2: 2}
"""Bits of a rounded difference; a lossless one has none."""
DEFAULT_BLOCK_SIZE = 32
OPTIMUM_HINT = "it stores each model alone as fp32, fp16 or bf16; use --exporter stepscore for the rest"
BLOCK_SIZES = (16, 32, 64, 128, 256)  # those of MatMulNBits' kernels


@dataclass(frozen=True, slots=True)
class ExportOptions:
    """Options of a pair of ONNX graphs; None is resolved from the other options.

    The default is W8A8 on the CPU (int8 weights and activations), because exact activations require
    dequantizing the weights for every batch. On CUDA activations are exact (weight-only), as it lacks an
    integer kernel.
    """

    precision: Precision = Precision.INT8
    target: Target = Target.CPU
    block_size: int = DEFAULT_BLOCK_SIZE
    beta: float = DEFAULT_BETA
    coding: Coding = Coding.AUTO
    difference_precision: DifferencePrecision | None = None
    activations: Activations | None = None
    products: Products | None = None
    exporter: Exporter = Exporter.STEPSCORE
    rotation: bool | None = None
    """Rotate residual stream and attention values; by default where it reduced the error on a real pair."""
    prefix: bool = True
    """Store the results of the chat template's prefix, which are then not computed at run time."""

    def __post_init__(self) -> None:
        if self.precision not in Format.ONNX.precisions:
            raise ExportError(
                f"precision {self.precision} is supported by bitsandbytes, not by ONNX Runtime",
                hint="use --format bitsandbytes, or --precision int4",
            )
        if self.block_size not in BLOCK_SIZES:
            raise ExportError(
                f"block size is {self.block_size}, expected one of {', '.join(map(str, BLOCK_SIZES))}"
            )
        if self.exporter is Exporter.OPTIMUM:
            self._reject_options_without_optimum()
        elif self.target is Target.CUDA and self.precision is Precision.FP32:
            raise ExportError(
                "fp32 has no attention kernel on CUDA", hint="use --precision bf16 or fp16, or --target cpu"
            )
        _check_beta(self.beta)
        if self.lossless and (self.precision is Precision.FP32 or self.target is Target.CPU):
            raise ExportError(
                f"a lossless difference is stored at fp16 and bf16 for CUDA, not at {self.precision} "
                f"for {self.target}",
                hint="use --precision int8 or int4, drop --coding, or use --precision bf16 --target cuda",
            )
        if self.difference_precision is DifferencePrecision.LOSSLESS and not self.lossless:
            raise ExportError(
                f"a lossless difference is not stored at {self.precision}",
                hint="use --precision bf16 --coding difference --target cuda",
            )
        if not self.may_be_coded:
            self._reject_options_of_coded_pairs()
        elif self.activations is Activations.INT8:
            self._check_int8_activations()
        elif self.target is Target.CUDA and self.products is Products.SEPARATE:
            raise ExportError(
                "separate products are slower than merged ones on CUDA",
                hint="drop --products, or use --target cpu",
            )
        elif self.target is Target.CUDA and self.difference_bits == 2:
            raise ExportError(
                "an int2 difference has no kernel on CUDA",
                hint="use --difference-precision int4, or --target cpu",
            )

    @property
    def may_be_coded(self) -> bool:
        """Whether the difference of the models is stored, or may be where they are close enough."""
        return self.coding is not Coding.INDEPENDENT and self.bits is not None

    @property
    def bits(self) -> int | None:
        """Bits of a block-quantized linear weight; None where weights are stored as floats."""
        return _BITS.get(self.precision)

    @property
    def difference_bits(self) -> int:
        """Bits of a weight of the difference (the delta)."""
        if self.difference_precision is not None:
            return _DIFFERENCE_BITS[self.difference_precision]
        return 8 if self.has_int8_activations else 4

    @property
    def has_int8_activations(self) -> bool:
        """Whether activations are quantized to 8 bits (W8A8)."""
        if self.activations is not None:
            return self.activations is Activations.INT8
        return self.may_be_coded and self.products is None and not self._no_int8_activations()

    @property
    def merged(self) -> bool:
        """Whether base and difference are added before the matmul, which saves one matmul."""
        return self.products is not Products.SEPARATE

    @property
    def rotated(self) -> bool:
        """Whether weights are rotated: by default with int8 activations only, where it was measured."""
        if self.exporter is Exporter.OPTIMUM or not self.may_be_coded:
            return False
        return self.has_int8_activations if self.rotation is None else self.rotation

    @property
    def lossless(self) -> bool:
        """Whether the policy is stored as the difference of its 16-bit patterns from the reference's."""
        return self.coding is Coding.DIFFERENCE and self.bits is None

    @property
    def signed_codes(self) -> bool:
        """Whether codes are signed: the decoders of CUDA pairs read no others."""
        return self.exporter is Exporter.STEPSCORE and self.target is Target.CUDA

    @property
    def compute(self) -> ir.DataType:
        """Type of activations: fp32 on the CPU; on CUDA the storage type, fp16 for integer weights.

        Graphs that optimum traced compute in fp32 on both.
        """
        if self.target is Target.CPU or self.exporter is Exporter.OPTIMUM:
            return ir.DataType.FLOAT
        return _STORAGE.get(self.precision, ir.DataType.FLOAT16)

    @property
    def storage(self) -> ir.DataType:
        """Type of a stored matrix that is not quantized."""
        return _STORAGE.get(self.precision, self.compute)

    def _reject_options_without_optimum(self) -> None:
        asked = {
            f"--precision {self.precision}": self.bits is not None,
            "--coding difference": self.coding is Coding.DIFFERENCE,
            "--difference-precision": self.difference_precision is not None,
            "--activations int8": self.activations is Activations.INT8,
            "--products": self.products is not None,
            "--rotation": self.rotation is True,
            "--block-size": self.block_size != DEFAULT_BLOCK_SIZE,
        }
        for option, given in asked.items():
            if given:
                raise ExportError(f"{option} is not supported with --exporter optimum", hint=OPTIMUM_HINT)

    def _reject_options_of_coded_pairs(self) -> None:
        asked = {
            "--difference-precision": self.difference_precision not in {None, DifferencePrecision.LOSSLESS},
            "--activations int8": self.activations is Activations.INT8,
            "--products": self.products is not None,
            "--rotation": self.rotation is True,
        }
        for option, given in asked.items():
            if given:
                why = "independent coding" if self.bits else f"precision {self.precision}"
                raise ExportError(
                    f"{option} requires a pair that is coded as a difference, not {why}",
                    hint="use --coding difference with --precision int8 or int4",
                )

    def _no_int8_activations(self) -> tuple[str, str] | None:
        """Return why int8 activations are not supported, and a hint; None where they are."""
        if self.target is Target.CUDA:
            return "int8 activations have no kernel on CUDA", "use --activations exact, or --target cpu"
        if self.bits != 8 or self.difference_precision not in {None, DifferencePrecision.INT8}:
            return (
                "int8 activations require 8-bit weights",
                "use --precision int8 --difference-precision int8, or --activations exact",
            )
        return None

    def _check_int8_activations(self) -> None:
        if (why := self._no_int8_activations()) is not None:
            raise ExportError(why[0], hint=why[1])
        if self.products is not None:
            raise ExportError(
                "--products requires exact activations", hint="drop --products, or use --activations exact"
            )


@dataclass(frozen=True, slots=True)
class BitsandbytesOptions:
    """Options of a pair of bitsandbytes' weights: each model quantized alone, for any device."""

    precision: Precision = Precision.INT8
    beta: float = DEFAULT_BETA

    def __post_init__(self) -> None:
        if self.precision not in Format.BITSANDBYTES.precisions:
            raise ExportError(
                f"precision {self.precision} is not supported by bitsandbytes",
                hint="use --precision int8, nf4 or fp4, or --format onnx",
            )
        _check_beta(self.beta)


Options = ExportOptions | BitsandbytesOptions
"""Options of an export; their class and exporter name the backend."""


def reject_with_bitsandbytes(given: Sequence[str]) -> None:
    """Raise ExportError for options that only ONNX pairs have, such as `--target`."""
    if given:
        raise ExportError(
            f"{given[0]} is not supported with --format bitsandbytes",
            hint=f"drop {' and '.join(given)}, or use --format onnx",
        )


def _check_beta(beta: float) -> None:
    if not 0 < beta < float("inf"):
        raise ExportError(f"beta is {beta}, expected a positive number")
