"""How far apart two models are, and whether coding their difference pays."""

from __future__ import annotations

import math
from types import MappingProxyType

from stepscore.artifact.manifest import Distance
from stepscore.enums import Coding, DifferencePrecision
from stepscore_export.options import ExportOptions

# Relative RMS error of rounding normal numbers in blocks of 32, the signed maximum on a code.
ROUNDING = MappingProxyType({8: 0.0055, 4: 0.092, 2: 0.36})

_BITS = MappingProxyType({each: int(each.removeprefix("int")) for each in DifferencePrecision})


def choose_coding(options: ExportOptions, distance: Distance) -> Coding:
    """Return the coding whose rounding moves the difference of the two models less.

    Coded, the difference is off by ROUNDING[difference bits] * |D|; independent, by the errors of two
    models, sqrt(2) * ROUNDING[bits] * |W|. A user's own choice stands.
    """
    if options.bits is None:
        return Coding.INDEPENDENT
    if options.coding is not Coding.AUTO:
        return options.coding
    bits = _BITS[choose_difference_precision(options, distance)]
    return Coding.DIFFERENCE if _pays(bits, options.bits, distance) else Coding.INDEPENDENT


def choose_difference_precision(options: ExportOptions, distance: Distance) -> DifferencePrecision:
    """Return the user's choice, else the default, or int8 where the models are too far apart for that.

    With an int8 base that is still no larger than two models at int8.
    """
    if options.difference_precision is not None:
        return options.difference_precision
    if options.bits == 8 and not _pays(options.difference_bits, options.bits, distance):
        return DifferencePrecision.INT8
    return DifferencePrecision(f"int{options.difference_bits}")


def _pays(difference_bits: int, bits: int, distance: Distance) -> bool:
    return ROUNDING[difference_bits] * distance.overall < math.sqrt(2) * ROUNDING[bits]
