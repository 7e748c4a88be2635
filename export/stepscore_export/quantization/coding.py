"""How far apart two models are, and whether coding their difference pays."""

from __future__ import annotations

import math
from collections.abc import Iterator
from types import MappingProxyType

import numpy as np

from stepscore.artifact.manifest import Distance
from stepscore.enums import Coding, DifferencePrecision
from stepscore_export.checkpoint.checkpoint import EMBEDDING, Checkpoint
from stepscore_export.families.qwen2 import tensor_shapes
from stepscore_export.options import ExportOptions

SAMPLE_ELEMENTS = 1 << 20  # of each matrix: a norm within 0.1 %
SLICES = 8

# Relative RMS error of rounding normal numbers in blocks of 32, the signed maximum on a code.
ROUNDING = MappingProxyType({8: 0.0055, 4: 0.092, 2: 0.36})

_BITS = MappingProxyType({each: int(each.removeprefix("int")) for each in DifferencePrecision})


def measure_distance(policy: Checkpoint, reference: Checkpoint) -> Distance:
    """Compare all matrices of two models of one shape; reads at most SAMPLE_ELEMENTS of each."""
    sums: dict[str, tuple[float, float]] = {}
    for name, ours, theirs in _matrices(policy, reference):
        difference = weight = 0.0
        for rows in _sample(reference.shape(theirs)):
            base = reference.rows(theirs, rows.start, rows.stop).astype(np.float64)
            difference += float(np.square(policy.rows(ours, rows.start, rows.stop) - base).sum())
            weight += float(np.square(base).sum())
        # as if of the whole matrix, so that in the overall norm a matrix counts by its size
        rows_of_one = reference.shape(theirs)[0] / sum(map(len, _sample(reference.shape(theirs))))
        sums[name] = difference * rows_of_one, weight * rows_of_one
    total = tuple(sum(values) for values in zip(*sums.values(), strict=True))
    return Distance(_ratio(*total), {name: _ratio(*values) for name, values in sums.items()})


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


def _matrices(policy: Checkpoint, reference: Checkpoint) -> Iterator[tuple[str, str, str]]:
    for name, shape in tensor_shapes(policy.config).items():
        if len(shape) == 2 and name not in {EMBEDDING, policy.head_name}:
            yield name, name, name
    yield EMBEDDING, EMBEDDING, EMBEDDING
    if policy.head_name != EMBEDDING or reference.head_name != EMBEDDING:
        yield "lm_head.weight", policy.head_name, reference.head_name


def _sample(shape: tuple[int, ...]) -> list[range]:
    """Slices of rows, evenly spread; all rows of a small matrix."""
    rows, columns = shape
    wanted = SAMPLE_ELEMENTS // columns
    if rows <= wanted:
        return [range(rows)]
    step, length = rows / SLICES, max(1, wanted // SLICES)
    return [range(int(index * step), int(index * step) + length) for index in range(SLICES)]


def _ratio(difference: float, weight: float) -> float:
    # taken apart, so that a reference of zeros gives a large number and not infinity
    return math.sqrt(difference) / math.sqrt(max(weight, float(np.finfo(np.float64).tiny)))
