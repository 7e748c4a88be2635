"""Forms that are measured, by provider; the first is the default of an export."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from enum import StrEnum

from stepscore.enums import Activations, Coding, DifferencePrecision, Precision, Products, Provider, Target
from stepscore_export.options import ExportOptions

DEFAULT, EXACT, FP32 = "int8 + int8, int8 activations", "int8 + int4, exact activations", "fp32"
LOSSLESS = "bf16, lossless difference"
LOSSLESS_ON_CPU = f"{LOSSLESS}, for CUDA; run in fp32 on the CPU"
CODED, FP16, BF16 = "int8 + int4", "fp16", "bf16"

FORMS: Mapping[Provider, Mapping[str, ExportOptions]] = {
    Provider.CPU: {
        DEFAULT: ExportOptions(Precision.INT8, coding=Coding.DIFFERENCE, activations=Activations.INT8),
        EXACT: ExportOptions(Precision.INT8, coding=Coding.DIFFERENCE, activations=Activations.EXACT),
        FP32: ExportOptions(Precision.FP32),
    },
    Provider.CUDA: {
        CODED: ExportOptions(
            Precision.INT8,
            Target.CUDA,
            coding=Coding.DIFFERENCE,
            difference_precision=DifferencePrecision.INT4,
            products=Products.MERGED,
        ),
        FP16: ExportOptions(Precision.FP16, Target.CUDA),
        BF16: ExportOptions(Precision.BF16, Target.CUDA),
    },
}


class CalibrationText(StrEnum):
    """What a form on real checkpoints is calibrated on."""

    NOTHING = "nothing"
    BUNDLED = "the solutions that come with stepscore"
    REAL = "solutions of shared/data that are not measured"


LOSSLESS_OPTIONS = ExportOptions(Precision.BF16, Target.CUDA, coding=Coding.DIFFERENCE)
_INT4 = ExportOptions(Precision.INT4, coding=Coding.DIFFERENCE)
_BASES = {DEFAULT: FORMS[Provider.CPU][DEFAULT], EXACT: FORMS[Provider.CPU][EXACT], "int4 + int4": _INT4}
_REMEDIES = {
    "neither": ({"rotation": False, "prefix": False}, CalibrationText.NOTHING),
    "prefix": ({"rotation": False}, CalibrationText.NOTHING),
    "rotated": ({"rotation": True, "prefix": False}, CalibrationText.NOTHING),
    "prefix, rotated": ({"rotation": True}, CalibrationText.NOTHING),
    "prefix, calibrated": ({"rotation": False}, CalibrationText.BUNDLED),
    "prefix, calibrated on real text": ({"rotation": False}, CalibrationText.REAL),
    "prefix, rotated, calibrated": ({"rotation": True}, CalibrationText.BUNDLED),
    "prefix, rotated, calibrated on real text": ({"rotation": True}, CalibrationText.REAL),
}
REAL_FORMS: Mapping[str, tuple[ExportOptions, CalibrationText]] = {
    FP32: (ExportOptions(Precision.FP32), CalibrationText.NOTHING),
    **{
        f"{name}; {remedy}": (replace(form, **options), calibration)
        for name, form in _BASES.items()
        for remedy, (options, calibration) in _REMEDIES.items()
    },
    LOSSLESS_ON_CPU: (LOSSLESS_OPTIONS, CalibrationText.NOTHING),
    "int8, independent; prefix": (
        ExportOptions(Precision.INT8, coding=Coding.INDEPENDENT),
        CalibrationText.NOTHING,
    ),
}
"""Forms on real checkpoints: each with and without its remedies, and what it is calibrated on."""


def default_form(provider: Provider) -> str:
    """Return the name of the default form of an export.

    >>> default_form(Provider.CPU), default_form(Provider.CUDA)
    ('int8 + int8, int8 activations', 'int8 + int4')
    """
    return next(iter(FORMS[provider]))
