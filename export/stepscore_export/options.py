"""What an export was asked for, and what follows from it."""

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
DEFAULT_BLOCK_SIZE = 32
OPTIMUM_HINT = "it stores each model on its own, as fp32, fp16 or bf16; the rest is --exporter stepscore's"
BLOCK_SIZES = (16, 32, 64, 128, 256)  # what MatMulNBits has kernels for


@dataclass(frozen=True, slots=True)
class ExportOptions:
    """The choices that shape the numbers of a pair; None is chosen by what the others are.

    Int8 with int8 activations on the CPU, where exact ones mean that weights are turned into floats for every
    batch. On CUDA activations are exact: there is no integer product.
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
    """Fold norms and rotate the residual stream and the values of attention; None: where it pays."""
    prefix: bool = True
    """Store the results of the template's prefix."""

    def __post_init__(self) -> None:
        if self.precision not in Format.ONNX.precisions:
            raise ExportError(
                f"{self.precision} weights are bitsandbytes', not ONNX Runtime's",
                hint="take --format bitsandbytes, or --precision int4",
            )
        if self.block_size not in BLOCK_SIZES:
            raise ExportError(
                f"block size {self.block_size} is not one of {', '.join(map(str, BLOCK_SIZES))}"
            )
        if self.exporter is Exporter.OPTIMUM:
            self._refuse_what_optimum_has_not()
        elif self.target is Target.CUDA and self.precision is Precision.FP32:
            raise ExportError(
                "fp32 has no attention kernel on CUDA", hint="take --precision bf16 or fp16, or --target cpu"
            )
        _check_beta(self.beta)
        if self.coding is Coding.DIFFERENCE and self.bits is None:
            raise ExportError(
                f"a difference is stored in integers, not at {self.precision}",
                hint="take --precision int8 or int4, or drop --coding",
            )
        if not self.may_be_coded:
            self._refuse_what_only_coded_pairs_have()
        elif self.activations is Activations.INT8:
            self._check_integer_products()
        elif self.target is Target.CUDA and self.difference_bits == 2:
            raise ExportError(
                "a difference of 2 bits has no kernel on CUDA",
                hint="take --difference-precision int4, or --target cpu",
            )

    @property
    def may_be_coded(self) -> bool:
        """Whether the difference of the models is stored, or may be where they are close enough."""
        return self.coding is not Coding.INDEPENDENT and self.bits is not None

    @property
    def bits(self) -> int | None:
        """Bits of a block-quantised linear weight; None where weights are stored as floats."""
        return _BITS.get(self.precision)

    @property
    def difference_bits(self) -> int:
        """Bits of a weight of the difference."""
        if self.difference_precision is not None:
            return _DIFFERENCE_BITS[self.difference_precision]
        return 8 if self.integer_products else 4

    @property
    def integer_products(self) -> bool:
        """Whether rows are rounded to 8 bits before they are multiplied."""
        if self.activations is not None:
            return self.activations is Activations.INT8
        return self.may_be_coded and self.products is None and not self._no_integer_product()

    @property
    def merged(self) -> bool:
        """Whether base and difference are added before the product: a product less, and faster for it."""
        return self.products is not Products.SEPARATE

    @property
    def rotated(self) -> bool:
        """Whether weights are rotated: chosen by measurement on a real pair (docs/benchmarks/fidelity.md)."""
        if self.exporter is Exporter.OPTIMUM or not self.may_be_coded:
            return False
        return self.integer_products if self.rotation is None else self.rotation

    @property
    def signed_codes(self) -> bool:
        """Whether codes are signed numbers: what CUDA's kernel that turns matrices into floats reads."""
        return self.merged and self.target is Target.CUDA

    @property
    def compute(self) -> ir.DataType:
        """What activations are: fp32 on the CPU; on CUDA the storage type, fp16 for integer weights.

        What optimum traces computes in fp32 anywhere.
        """
        if self.target is Target.CPU or self.exporter is Exporter.OPTIMUM:
            return ir.DataType.FLOAT
        return _STORAGE.get(self.precision, ir.DataType.FLOAT16)

    @property
    def storage(self) -> ir.DataType:
        """What a matrix that is not quantised is stored in."""
        return _STORAGE.get(self.precision, self.compute)

    def _refuse_what_optimum_has_not(self) -> None:
        asked = {
            f"--precision {self.precision}": self.bits is not None,
            "--coding difference": self.coding is Coding.DIFFERENCE,
            "--difference-precision": self.difference_precision is not None,
            "--activations int8": self.activations is Activations.INT8,
            "--products": self.products is not None,
            "--block-size": self.block_size != DEFAULT_BLOCK_SIZE,
        }
        for option, given in asked.items():
            if given:
                raise ExportError(f"--exporter optimum has no {option}", hint=OPTIMUM_HINT)

    def _refuse_what_only_coded_pairs_have(self) -> None:
        asked = {
            "--difference-precision": self.difference_precision is not None,
            "--activations int8": self.activations is Activations.INT8,
            "--products": self.products is not None,
        }
        for option, given in asked.items():
            if given:
                why = "independent coding" if self.bits else f"precision {self.precision}"
                raise ExportError(
                    f"{option} belongs to a pair stored as a difference, which {why} is not",
                    hint="take --coding difference with --precision int8 or int4",
                )

    def _no_integer_product(self) -> tuple[str, str] | None:
        """Return why there is none, and what to do about it."""
        if self.target is Target.CUDA:
            return "int8 activations have no kernel on CUDA", "take --activations exact, or --target cpu"
        if self.bits != 8 or self.difference_precision not in {None, DifferencePrecision.INT8}:
            return (
                "int8 activations are multiplied with 8-bit weights only",
                "take --precision int8 --difference-precision int8, or --activations exact",
            )
        return None

    def _check_integer_products(self) -> None:
        if (why := self._no_integer_product()) is not None:
            raise ExportError(why[0], hint=why[1])
        if self.products is not None:
            raise ExportError("--products is a choice for exact activations", hint="drop it")


@dataclass(frozen=True, slots=True)
class BitsandbytesOptions:
    """The choices of a pair of bitsandbytes' weights: each model on its own, for any provider."""

    precision: Precision = Precision.INT8
    beta: float = DEFAULT_BETA

    def __post_init__(self) -> None:
        if self.precision not in Format.BITSANDBYTES.precisions:
            raise ExportError(
                f"bitsandbytes has no {self.precision} weights",
                hint="take --precision int8, nf4 or fp4, or --format onnx",
            )
        _check_beta(self.beta)


Options = ExportOptions | BitsandbytesOptions
"""What an export is asked for; the class says which backends can store it."""


def refuse_with_bitsandbytes(given: Sequence[str]) -> None:
    """Raise ExportError where options were given that only ONNX pairs have, such as `--target`."""
    if given:
        raise ExportError(
            f"{given[0]} is a choice for ONNX pairs; bitsandbytes decides for itself",
            hint=f"drop {' and '.join(given)}, or take --format onnx",
        )


def _check_beta(beta: float) -> None:
    if not 0 < beta < float("inf"):
        raise ExportError(f"beta is {beta}; it must be a positive number")
