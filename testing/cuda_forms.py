"""The forms of a pair for CUDA, each of which the engine runs on the CPU provider too."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from stepscore.enums import Coding, DifferencePrecision, Precision, Target
from stepscore_export.options import ExportOptions

_CODED = {"target": Target.CUDA, "coding": Coding.DIFFERENCE}
_ALONE = {"target": Target.CUDA, "coding": Coding.INDEPENDENT}

CUDA_FORMS: Mapping[str, tuple[ExportOptions, float]] = {
    "fp16": (ExportOptions(Precision.FP16, **_ALONE), 0.02),
    "bf16": (ExportOptions(Precision.BF16, **_ALONE), 0.15),
    "int8": (ExportOptions(Precision.INT8, **_ALONE), 0.3),
    "int4": (ExportOptions(Precision.INT4, **_ALONE), 2.0),
    "int8-int4": (ExportOptions(Precision.INT8, **_CODED), 0.3),
    "int8-int8": (
        ExportOptions(Precision.INT8, difference_precision=DifferencePrecision.INT8, **_CODED),
        0.3,
    ),
    "int4-int4": (ExportOptions(Precision.INT4, **_CODED), 2.0),
    "rotated": (ExportOptions(Precision.INT8, rotation=True, **_CODED), 0.3),
    "padded-blocks": (ExportOptions(Precision.INT8, block_size=64, **_CODED), 0.3),
    "no-prefix": (ExportOptions(Precision.INT8, prefix=False, **_CODED), 0.3),
}
"""Options by name, and the largest error of a log-prob in nats on the tiny checkpoints."""

LOSSLESS = ExportOptions(Precision.BF16, **_CODED)
"""For checkpoints in bf16."""

_OF_EACH_KIND = ("fp16", "int8-int4", "int4-int4")
a_cuda_form_of_each_kind = pytest.mark.parametrize("form", _OF_EACH_KIND)
every_cuda_form = pytest.mark.parametrize(
    "form",
    [pytest.param(form, marks=() if form in _OF_EACH_KIND else pytest.mark.slow) for form in CUDA_FORMS],
)
