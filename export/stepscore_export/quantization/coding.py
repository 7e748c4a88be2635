"""Choose between difference coding and independent quantization from the distance of two models."""

from __future__ import annotations

import math
from types import MappingProxyType

from stepscore.artifact.manifest import Distance
from stepscore.enums import Coding, DifferencePrecision
from stepscore_export.options import ExportOptions

# Relative RMS error of rounding normally distributed numbers, by bits: symmetric grid, blocks of 32.
ROUNDING = MappingProxyType({8: 0.0055, 4: 0.092, 2: 0.36})

_BITS = MappingProxyType({DifferencePrecision(f"int{bits}"): bits for bits in ROUNDING})


def choose_coding(options: ExportOptions, distance: Distance) -> Coding:
    """Return the coding with the smaller quantization error in the difference of the two models.

    Difference coding has the error ROUNDING[difference bits] * |D|. Independent quantization has the errors
    of two models, sqrt(2) * ROUNDING[bits] * |W|. Here |.| is the Frobenius norm and D = policy - reference.
    A coding that the user chose is kept.
    """
    if options.bits is None:
        return Coding.DIFFERENCE if options.lossless else Coding.INDEPENDENT
    if options.coding is not Coding.AUTO:
        return options.coding
    bits = _BITS[choose_difference_precision(options, distance)]
    return Coding.DIFFERENCE if _pays(bits, options.bits, distance) else Coding.INDEPENDENT


def choose_difference_precision(options: ExportOptions, distance: Distance) -> DifferencePrecision:
    """Return the user's choice, else the default, or int8 if the models are too far apart for the default.

    An int8 base with an int8 difference is no larger than two independent int8 models.
    """
    if options.difference_precision is not None:
        return options.difference_precision
    if options.lossless:
        return DifferencePrecision.LOSSLESS
    if options.bits == 8 and not _pays(options.difference_bits, options.bits, distance):
        return DifferencePrecision.INT8
    return DifferencePrecision(f"int{options.difference_bits}")


def _pays(difference_bits: int, bits: int, distance: Distance) -> bool:
    return ROUNDING[difference_bits] * distance.overall < math.sqrt(2) * ROUNDING[bits]
