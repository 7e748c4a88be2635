"""Measures the distance of two checkpoints, |policy - reference| / |reference|."""

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
    """Return the distance of all matrices of two models of one shape, sampled: SAMPLE_ELEMENTS of each."""
    sums: dict[str, tuple[float, float]] = {}
    for name, in_policy, in_reference in _matrices(policy, reference):
        difference = weight = 0.0
        for rows in _sample(reference.shape(in_reference)):
            base = reference.rows(in_reference, rows.start, rows.stop).astype(np.float64)
            difference += float(np.square(policy.rows(in_policy, rows.start, rows.stop) - base).sum())
            weight += float(np.square(base).sum())
        # Scaled up to the whole matrix, so that a matrix counts by its size in the overall norm.
        shape = reference.shape(in_reference)
        rows_per_sampled = shape[0] / sum(map(len, _sample(shape)))
        sums[name] = difference * rows_per_sampled, weight * rows_per_sampled
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
    """Return slices of rows, evenly spread; all rows of a small matrix."""
    rows, columns = shape
    wanted = SAMPLE_ELEMENTS // columns
    if rows <= wanted:
        return [range(rows)]
    step, length = rows / SLICES, max(1, wanted // SLICES)
    return [range(int(index * step), int(index * step) + length) for index in range(SLICES)]


def _ratio(difference: float, weight: float) -> float:
    # Two square roots, so that a reference of zeros gives a large number, not infinity.
    return math.sqrt(difference) / math.sqrt(max(weight, float(np.finfo(np.float64).tiny)))
