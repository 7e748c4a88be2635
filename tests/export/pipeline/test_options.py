"""What may be asked of an export, what is refused, and what is chosen where nothing was asked."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
import pytest

from stepscore.artifact.manifest import Distance
from stepscore.enums import Activations, Coding, DifferencePrecision, Format, Precision, Products, Target
from stepscore.errors import ExportError
from stepscore_export.backends.graph_backend import resolve_options
from stepscore_export.options import BLOCK_SIZES, ExportOptions

CLOSE, FAR = Distance(0.01, {}), Distance(2.0, {})
FLOATS = (Precision.FP32, Precision.FP16, Precision.BF16)
INTEGERS = (Precision.INT8, Precision.INT4)
SIXTEEN_BITS = (Precision.FP16, Precision.BF16)
INT8, INT4, INT2 = DifferencePrecision.INT8, DifferencePrecision.INT4, DifferencePrecision.INT2
LOSSLESS = DifferencePrecision.LOSSLESS


# What is refused


def refusal(*positional: Any, **options: Any) -> ExportError:
    with pytest.raises(ExportError) as refused:
        ExportOptions(*positional, **options)
    return refused.value


@pytest.mark.parametrize("block_size", [0, 8, 31, 512])
def test_block_sizes_without_a_kernel_are_refused(block_size: int) -> None:
    refused = refusal(Precision.INT8, block_size=block_size)
    assert refused.message == f"block size is {block_size}, expected one of 16, 32, 64, 128, 256"


@pytest.mark.parametrize("block_size", BLOCK_SIZES)
def test_block_sizes_with_a_kernel_are_accepted(block_size: int) -> None:
    assert ExportOptions(Precision.INT8, block_size=block_size).block_size == block_size


def test_fp32_for_cuda_is_refused() -> None:
    refused = refusal(Precision.FP32, Target.CUDA)
    assert refused.message == "fp32 has no attention kernel on CUDA"
    assert refused.hint == "use --precision bf16 or fp16, or --target cpu"


@pytest.mark.parametrize("precision", [Precision.NF4, Precision.FP4])
def test_four_bits_of_bitsandbytes_are_refused_for_onnx(precision: Precision) -> None:
    refused = refusal(precision)
    assert refused.message == f"precision {precision} is supported by bitsandbytes, not by ONNX Runtime"
    assert refused.hint == "use --format bitsandbytes, or --precision int4"


@pytest.mark.parametrize("beta", [0.0, -1.0, float("nan"), float("inf")])
def test_invalid_beta_is_rejected(beta: float) -> None:
    assert refusal(beta=beta).message == f"beta is {beta}, expected a positive number"


@pytest.mark.parametrize("precision", FLOATS)
def test_a_difference_of_floats_is_refused_for_the_cpu(precision: Precision) -> None:
    refused = refusal(precision, coding=Coding.DIFFERENCE)
    assert refused.message == (
        f"a lossless difference is stored at fp16 and bf16 for CUDA, not at {precision} for cpu"
    )
    assert refused.hint == (
        "use --precision int8 or int4, drop --coding, or use --precision bf16 --target cuda"
    )


@pytest.mark.parametrize("precision", INTEGERS)
@pytest.mark.parametrize("target", Target)
def test_a_lossless_difference_of_integers_is_refused(precision: Precision, target: Target) -> None:
    refused = refusal(precision, target, difference_precision=LOSSLESS)
    assert refused.message == f"a lossless difference is not stored at {precision}"
    assert refused.hint == "use --precision bf16 --coding difference --target cuda"


@pytest.mark.parametrize("precision", SIXTEEN_BITS)
def test_a_lossless_difference_is_asked_for_by_its_coding(precision: Precision) -> None:
    refused = refusal(precision, Target.CUDA, difference_precision=LOSSLESS)
    assert refused.message == f"a lossless difference is not stored at {precision}"
    asked = ExportOptions(precision, Target.CUDA, coding=Coding.DIFFERENCE, difference_precision=LOSSLESS)
    assert asked.lossless


@pytest.mark.parametrize("precision", SIXTEEN_BITS)
@pytest.mark.parametrize("rounded", [INT8, INT4, INT2])
def test_a_difference_of_floats_is_not_rounded(precision: Precision, rounded: DifferencePrecision) -> None:
    refused = refusal(precision, Target.CUDA, coding=Coding.DIFFERENCE, difference_precision=rounded)
    assert refused.message == (
        f"--difference-precision requires a pair that is coded as a difference, not precision {precision}"
    )


@pytest.mark.parametrize("precision", INTEGERS)
def test_separate_products_are_refused_for_cuda(precision: Precision) -> None:
    refused = refusal(precision, Target.CUDA, products=Products.SEPARATE)
    assert refused.message == "separate products are slower than merged ones on CUDA"
    assert refused.hint == "drop --products, or use --target cpu"


ONLY_CODED = [
    ("--difference-precision", {"difference_precision": INT4}),
    ("--activations int8", {"activations": Activations.INT8}),
    ("--products", {"products": Products.SEPARATE}),
]


@pytest.mark.parametrize("precision", FLOATS)
@pytest.mark.parametrize(("option", "asked"), ONLY_CODED, ids=[option for option, _ in ONLY_CODED])
def test_a_float_pair_has_no_option_of_a_coded_one(
    option: str, asked: dict[str, Any], precision: Precision
) -> None:
    assert refusal(precision, **asked).message == (
        f"{option} requires a pair that is coded as a difference, not precision {precision}"
    )


@pytest.mark.parametrize("precision", INTEGERS)
@pytest.mark.parametrize(("option", "asked"), ONLY_CODED, ids=[option for option, _ in ONLY_CODED])
def test_an_independent_pair_has_no_option_of_a_coded_one(
    option: str, asked: dict[str, Any], precision: Precision
) -> None:
    refused = refusal(precision, coding=Coding.INDEPENDENT, **asked)
    assert refused.message == (
        f"{option} requires a pair that is coded as a difference, not independent coding"
    )
    assert refused.hint == "use --coding difference with --precision int8 or int4"


@pytest.mark.parametrize("precision", INTEGERS)
def test_a_difference_of_two_bits_is_refused_for_cuda(precision: Precision) -> None:
    refused = refusal(precision, Target.CUDA, difference_precision=INT2)
    assert refused.message == "an int2 difference has no kernel on CUDA"
    assert refused.hint == "use --difference-precision int4, or --target cpu"


@pytest.mark.parametrize("precision", INTEGERS)
def test_int8_activations_are_refused_for_cuda(precision: Precision) -> None:
    refused = refusal(precision, Target.CUDA, activations=Activations.INT8)
    assert refused.message == "int8 activations have no kernel on CUDA"
    assert refused.hint == "use --activations exact, or --target cpu"


@pytest.mark.parametrize(
    "options",
    [
        {"precision": Precision.INT4},
        {"precision": Precision.INT4, "difference_precision": INT8},
        {"precision": Precision.INT8, "difference_precision": INT4},
        {"precision": Precision.INT8, "difference_precision": INT2},
    ],
)
def test_int8_activations_want_eight_bit_weights(options: dict[str, Any]) -> None:
    refused = refusal(activations=Activations.INT8, **options)
    assert refused.message == "int8 activations require 8-bit weights"
    assert refused.hint == "use --precision int8 --difference-precision int8, or --activations exact"


@pytest.mark.parametrize("products", Products)
def test_products_option_is_rejected_with_int8_activations(products: Products) -> None:
    refused = refusal(Precision.INT8, activations=Activations.INT8, products=products)
    assert refused.message == "--products requires exact activations"
    assert refused.hint == "drop --products, or use --activations exact"


# What follows from what


def test_int8_for_the_cpu_has_int8_activations_and_an_eight_bit_difference() -> None:
    assert ExportOptions() == ExportOptions(Precision.INT8, Target.CPU)
    for options in (ExportOptions(), ExportOptions(activations=Activations.INT8)):
        assert options.has_int8_activations
        assert options.difference_bits == 8


EXACT_ACTIVATIONS: list[dict[str, Any]] = [
    {"precision": Precision.INT4},
    {"target": Target.CUDA},
    {"activations": Activations.EXACT},
    {"products": Products.MERGED},
    {"products": Products.SEPARATE},
    {"precision": Precision.INT4, "target": Target.CUDA},
]


@pytest.mark.parametrize("asked", EXACT_ACTIVATIONS)
def test_exact_activations_come_with_a_4_bit_difference(
    asked: dict[str, Any],
) -> None:
    options = ExportOptions(**asked)
    assert not options.has_int8_activations
    assert options.difference_bits == 4


@pytest.mark.parametrize("difference", [INT4, INT2])
def test_a_difference_of_fewer_bits_has_exact_activations(difference: DifferencePrecision) -> None:
    assert not ExportOptions(difference_precision=difference).has_int8_activations


@pytest.mark.parametrize(
    "asked", [*({"precision": precision} for precision in FLOATS), {"coding": Coding.INDEPENDENT}]
)
def test_a_pair_that_is_not_coded_has_exact_activations(asked: dict[str, Any]) -> None:
    assert not ExportOptions(**asked).has_int8_activations


@pytest.mark.parametrize(("asked", "bits"), [(INT8, 8), (INT4, 4), (INT2, 2)])
def test_a_difference_has_the_bits_that_were_asked_for(asked: DifferencePrecision, bits: int) -> None:
    assert ExportOptions(Precision.INT8, difference_precision=asked).difference_bits == bits


@pytest.mark.parametrize("precision", Format.ONNX.precisions)
def test_activations_are_fp32_on_the_cpu(precision: Precision) -> None:
    assert ExportOptions(precision).compute == ir.DataType.FLOAT


@pytest.mark.parametrize("precision", [Precision.FP16, Precision.BF16, *INTEGERS])
def test_activations_have_16_bits_on_cuda(precision: Precision) -> None:
    expected = ir.DataType.BFLOAT16 if precision is Precision.BF16 else ir.DataType.FLOAT16
    assert ExportOptions(precision, Target.CUDA).compute == expected


# What settle() chooses


def settled(distance: Distance, *positional: Any, **options: Any) -> tuple[Any, ...]:
    found = resolve_options(ExportOptions(*positional, **options), distance)
    return found.coding, found.difference_precision, found.activations, found.products


INDEPENDENT = (Coding.INDEPENDENT, None, Activations.EXACT, None)


def test_close_models_at_int8_get_int8_activations_on_the_cpu() -> None:
    assert settled(CLOSE) == (Coding.DIFFERENCE, INT8, Activations.INT8, None)


@pytest.mark.parametrize("precision", INTEGERS)
@pytest.mark.parametrize("target", Target)
def test_close_models_with_exact_activations_are_merged(precision: Precision, target: Target) -> None:
    found = settled(CLOSE, precision, target, activations=Activations.EXACT)
    assert found == (Coding.DIFFERENCE, INT4, Activations.EXACT, Products.MERGED)
    if target is Target.CUDA or precision is Precision.INT4:
        assert settled(CLOSE, precision, target) == found


def test_models_further_apart_have_a_difference_of_eight_bits_where_the_base_has() -> None:
    apart = Distance(0.2, {})  # an int4 difference is off by 1.8 % of |W|, two models at int8 by 0.8 %
    eight = (Coding.DIFFERENCE, INT8, Activations.EXACT, Products.MERGED)
    assert settled(apart, Precision.INT8, Target.CUDA) == eight
    assert settled(apart, Precision.INT4, Target.CUDA) == (eight[0], INT4, *eight[2:])
    kept = settled(apart, Precision.INT8, Target.CUDA, difference_precision=INT4, coding=Coding.DIFFERENCE)
    assert kept == (eight[0], INT4, *eight[2:])


def test_a_difference_of_two_bits_is_merged_as_well() -> None:
    expected = (Coding.DIFFERENCE, INT2, Activations.EXACT, Products.MERGED)
    assert settled(CLOSE, Precision.INT8, difference_precision=INT2) == expected


@pytest.mark.parametrize(
    ("target", "products"), [*((Target.CPU, each) for each in Products), (Target.CUDA, Products.MERGED)]
)
def test_requested_products_are_kept(target: Target, products: Products) -> None:
    assert settled(CLOSE, Precision.INT8, target, products=products)[3] is products


@pytest.mark.parametrize("precision", SIXTEEN_BITS)
@pytest.mark.parametrize("distance", [CLOSE, FAR])
def test_floats_for_cuda_are_coded_without_loss_on_request_only(
    precision: Precision, distance: Distance
) -> None:
    assert settled(distance, precision, Target.CUDA) == INDEPENDENT
    expected = (Coding.DIFFERENCE, LOSSLESS, Activations.EXACT, None)
    assert settled(distance, precision, Target.CUDA, coding=Coding.DIFFERENCE) == expected


def test_int8_activations_resolve_to_an_8_bit_difference() -> None:
    expected = (Coding.DIFFERENCE, INT8, Activations.INT8, None)
    assert settled(CLOSE, Precision.INT8, activations=Activations.INT8) == expected


@pytest.mark.parametrize("precision", INTEGERS)
@pytest.mark.parametrize("target", Target)
def test_models_far_apart_are_independent(precision: Precision, target: Target) -> None:
    assert settled(FAR, precision, target) == INDEPENDENT


@pytest.mark.parametrize("precision", FLOATS)
def test_float_pairs_are_independent_however_close(precision: Precision) -> None:
    assert settled(Distance(0.0, {}), precision) == INDEPENDENT


@pytest.mark.parametrize("coding", [Coding.DIFFERENCE, Coding.INDEPENDENT])
@pytest.mark.parametrize("distance", [CLOSE, FAR])
def test_requested_coding_is_kept(coding: Coding, distance: Distance) -> None:
    assert settled(distance, Precision.INT8, coding=coding)[0] is coding


@pytest.mark.parametrize("distance", [CLOSE, FAR])
@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"activations": Activations.INT8},
        {"activations": Activations.EXACT},
        {"target": Target.CUDA},
        {"precision": Precision.BF16, "target": Target.CUDA, "coding": Coding.DIFFERENCE},
    ],
)
def test_resolved_options_resolve_to_themselves(distance: Distance, asked: dict[str, Any]) -> None:
    once = resolve_options(ExportOptions(**asked), distance)
    assert resolve_options(once, distance) == once
