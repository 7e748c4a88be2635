"""The forms of a pair: every precision for either target, and every way to store a difference."""

from __future__ import annotations

import onnx
import pytest

from stepscore.enums import (
    Activations,
    Coding,
    DifferencePrecision,
    Format,
    Precision,
    Products,
    Residency,
    Target,
)
from stepscore_export.options import ExportOptions

# Models stored independently

COMPUTE = {
    Precision.FP16: onnx.TensorProto.FLOAT16,
    Precision.BF16: onnx.TensorProto.BFLOAT16,
    Precision.INT8: onnx.TensorProto.FLOAT16,
    Precision.INT4: onnx.TensorProto.FLOAT16,
}
"""The type of activations on CUDA."""
CUDA_PRECISIONS = tuple(COMPUTE)
INTEGER_PRECISIONS = (Precision.INT8, Precision.INT4)
EXPORTS = [
    *((precision, Target.CPU) for precision in Format.ONNX.precisions),
    *((precision, Target.CUDA) for precision in CUDA_PRECISIONS),
]
every_export = pytest.mark.parametrize(("precision", "target"), EXPORTS)
every_precision = pytest.mark.parametrize("precision", Format.ONNX.precisions)
"""On the CPU, whose graphs hold the places of their weights."""
CPU_RESIDENCIES = tuple(each for each in Residency if each is not Residency.PARTIAL)
every_residency = pytest.mark.parametrize("residency", CPU_RESIDENCIES)
"""Of a pair for the CPU."""

# A reference and a difference

MERGED = {
    precision: ExportOptions(precision, coding=Coding.DIFFERENCE, products=Products.MERGED)
    for precision in (Precision.INT8, Precision.INT4)
}
SEPARATE = {
    precision: ExportOptions(precision, coding=Coding.DIFFERENCE, products=Products.SEPARATE)
    for precision in (Precision.INT8, Precision.INT4)
}
TWO_BITS = {
    products: ExportOptions(
        Precision.INT8,
        coding=Coding.DIFFERENCE,
        difference_precision=DifferencePrecision.INT2,
        products=products,
    )
    for products in Products
}
INTEGER = ExportOptions(Precision.INT8, coding=Coding.DIFFERENCE, activations=Activations.INT8)

EXACT_FORMS = [*MERGED.values(), *SEPARATE.values(), *TWO_BITS.values()]


def name_of(options: ExportOptions) -> str:
    """What a test of this form is called."""
    if options.activations is Activations.INT8:
        return "int8-activations"
    how = "merged" if options.merged else "separate"
    return f"{options.precision}-int{options.difference_bits}-{how}"


exact_forms = pytest.mark.parametrize("form", EXACT_FORMS, ids=name_of)
every_form = pytest.mark.parametrize("form", [*EXACT_FORMS, INTEGER], ids=name_of)
FORM_OF_EACH_KIND = [MERGED[Precision.INT8], SEPARATE[Precision.INT4], INTEGER]
a_form_of_each_kind = pytest.mark.parametrize("form", FORM_OF_EACH_KIND, ids=name_of)
