"""Rounding with error feedback (GPTQ, Frantar et al. 2022): what one column loses, later columns make up for.

Nearest rounding minimises the error of a matrix; what counts is the error of its products with the rows that
really come. Columns are rounded one after the other, and the error of each is carried over to those behind it
as far as the inputs of both are correlated. Second moments are kept for groups of GROUP columns, not for
[K, K]: 10 MB for K = 18,944 where all of it would be 1.4 GB, and all groups and rows are worked on at once.
Pure: no graph, no files.
"""

from __future__ import annotations

import numpy as np

from stepscore_export.quantization.rounding import (
    Floats,
    Grid,
    Quantized,
    QuantizedChannels,
    ScaleType,
    channel_scales,
    pack,
)

GROUP = 128
LARGEST_GROUP = 4096
"""Up to so many columns are one group: all of a residual stream of 3,584, but not of an intermediate size."""
WIDE_GROUP = 1024
"""Columns of a group where one would be too large: 155 MB of float64 for 18,944 columns, all of it 2.9 GB."""
COLUMNS_AT_ONCE = 32  # between two matrix products that carry their errors over
DAMPING = 0.01  # of the mean second moment, added to all: columns that never vary stay solvable


def group_of(columns: int, block_size: int) -> int:
    """Return the columns of a group: all where that is possible, a multiple of the block size.

    Rotated inputs are correlated across all of their channels, which small groups do not see.

    >>> group_of(896, 32), group_of(900, 32), group_of(18_944, 32)
    (896, 928, 1024)
    """
    whole = -(-columns // block_size) * block_size
    return whole if whole <= LARGEST_GROUP else WIDE_GROUP


class Hessian:
    """Second moments x^T x of the rows [T, K] that enter a matrix, within groups of columns."""

    def __init__(self, columns: int, group: int = GROUP) -> None:
        self._sums = np.zeros((-(-columns // group), group, group))

    def add(self, rows: Floats) -> None:
        """Add rows [T, K], float32."""
        groups, group, _ = self._sums.shape
        padded = np.pad(rows, ((0, 0), (0, groups * group - rows.shape[1])))
        by_group = padded.reshape(len(rows), groups, group).transpose(1, 0, 2)
        self._sums += by_group.transpose(0, 2, 1) @ by_group

    def spread(self) -> Floats:
        """Return how one unit of error in a column is spread: float32 [groups, group, group].

        Row i of U / diag(U), where U is upper triangular and U^T U the inverse of the damped moments: the
        error e of column i changes column j > i by -e * spread[i, j].
        """
        moments = self._sums.copy()
        diagonal = np.einsum("gii->gi", moments)  # a view
        seen = diagonal > 0
        mean = diagonal.sum(axis=1) / np.maximum(seen.sum(axis=1), 1)
        mean[mean == 0] = 1
        diagonal += np.where(seen, DAMPING, 1) * mean[:, None]
        upper = np.linalg.cholesky(np.linalg.inv(moments)).transpose(0, 2, 1)
        return np.asarray(upper / np.einsum("gii->gi", upper)[..., None], np.float32)


def quantize_with_feedback(
    weight: Floats,
    spread: Floats,
    bits: int,
    block_size: int,
    scale_dtype: ScaleType = np.float32,
    *,
    asymmetric: bool = False,
) -> Quantized:
    """Round as `quantize` does (same layout, same grids), carrying errors over.

    weight: float32 [N, K]; spread: of this matrix's inputs, its group a multiple of block_size. A block's
    grid is that of its columns with all that was carried over to them.
    """
    columns = _grouped(weight, spread)  # [groups, group, N]
    codes = np.empty(columns.shape, np.uint8)
    make = Grid.asymmetric if asymmetric else Grid.symmetric
    grids = []
    for start in range(0, spread.shape[1], block_size):
        block = slice(start, start + block_size)
        grid = make(columns[:, block].max(axis=1), columns[:, block].min(axis=1), bits, scale_dtype)
        codes[:, block] = _round_block(columns, spread, block, grid) + grid.zeros[:, None]
        grids.append(grid)
    blocks = -(-weight.shape[1] // block_size)
    flat = codes.reshape(-1, len(weight))[: blocks * block_size].T.reshape(len(weight), blocks, block_size)
    scales, zeros = (
        np.stack(parts, axis=1).reshape(-1, len(weight))[:blocks].T  # [N, blocks]
        for parts in ([grid.scales for grid in grids], [grid.zeros for grid in grids])
    )
    return Quantized(
        pack(flat, bits), scales.astype(scale_dtype), zeros.astype(np.uint8) if asymmetric else None
    )


def quantize_channels_with_feedback(weight: Floats, spread: Floats) -> QuantizedChannels:
    """Round as `quantize_channels` does, one scale a row, carrying errors over."""
    columns = _grouped(weight, spread)
    scales = channel_scales(weight)
    steps = np.broadcast_to(scales, (len(columns), len(weight)))
    grid = Grid(steps, np.full_like(steps, 127), top=254)
    codes = np.empty(columns.shape, np.int8)
    for start in range(0, spread.shape[1], COLUMNS_AT_ONCE):
        block = slice(start, start + COLUMNS_AT_ONCE)
        codes[:, block] = _round_block(columns, spread, block, grid)
    flat = codes.reshape(-1, len(weight))[: weight.shape[1]]
    return QuantizedChannels(np.ascontiguousarray(flat.T), scales)


def _grouped(weight: Floats, spread: Floats) -> Floats:
    """[N, K] -> [groups, group, N], a copy; K is padded with zeros."""
    groups, group, _ = spread.shape
    padded = np.zeros((groups * group, len(weight)), np.float32)
    padded[: weight.shape[1]] = weight.T
    return padded.reshape(groups, group, len(weight))


def _round_block(columns: Floats, spread: Floats, block: slice, grid: Grid) -> Floats:
    """Return the codes of columns[:, block], minus those of 0, and carry their errors over to all behind."""
    codes, errors = np.empty_like(columns[:, block]), np.empty_like(columns[:, block])
    for index, column in enumerate(range(block.start, block.stop)):
        codes[:, index] = grid.round(columns[:, column])
        errors[:, index] = columns[:, column] - codes[:, index] * grid.scales
        behind = slice(column + 1, block.stop)
        columns[:, behind] -= spread[:, column, behind, None] * errors[:, index, None]
    columns[:, block.stop :] -= spread[:, block, block.stop :].transpose(0, 2, 1) @ errors
    return codes
