"""How far apart two checkpoints are."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from stepscore.artifact.manifest import Distance
from stepscore_export.checkpoint.checkpoint import Checkpoint
from stepscore_export.families.base import EMBEDDING, HEAD, tensor_shapes

SAMPLE_ELEMENTS = 1 << 20  # of each matrix: a norm within 0.1 %


SLICES = 8


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


def _matrices(policy: Checkpoint, reference: Checkpoint) -> Iterator[tuple[str, str, str]]:
    for name, shape in tensor_shapes(policy.config).items():
        if len(shape) == 2 and name not in {EMBEDDING, policy.head_name}:
            yield name, name, name
    yield EMBEDDING, EMBEDDING, EMBEDDING
    if policy.head_name != EMBEDDING or reference.head_name != EMBEDDING:
        yield HEAD, policy.head_name, reference.head_name


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
