"""Quantize with error feedback (GPTQ, Frantar et al. 2022): later columns compensate earlier errors.

Nearest rounding minimizes the error of a matrix W [N, K]. GPTQ reduces the error of the outputs x W^T on
calibration activations x instead. It rounds the columns one after the other and propagates the error of each
to the later columns, in proportion to the correlation of their inputs.

The Hessian x^T x is kept block-diagonal, for groups of GROUP columns: 10 MB for K = 18,944 instead of 1.4 GB
for [K, K]. All groups and all rows are processed at once. Pure functions: no graph, no files.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stepscore_export.quantization.rounding import (
    Floats,
    Grid,
    Quantized,
    QuantizedChannels,
    ScaleType,
    channel_scales,
    pack,
)

Doubles = NDArray[np.float64]

GROUP = 128
LARGEST_GROUP = 4096
"""A residual stream of 3,584 channels is one group; an intermediate size of 18,944 would take 2.9 GB."""
WIDE_GROUP = 1024
"""Columns per group where one group would be too large: 155 MB of float64 for 18,944 columns."""
COLUMNS_AT_ONCE = 32  # rounded between two matmuls that propagate their errors to the later columns
SMALLEST_HALF = 64  # columns below which a triangular matrix is inverted as a dense one
DAMPING = 0.01  # fraction of the mean of the diagonal that is added to it, so that the Hessian is invertible


def group_of(columns: int, block_size: int) -> int:
    """Return the columns of a group: all where that is possible, a multiple of the block size.

    Rotated inputs are correlated across all of their channels, which small groups do not see.

    >>> group_of(896, 32), group_of(900, 32), group_of(18_944, 32)
    (896, 928, 1024)
    """
    whole = -(-columns // block_size) * block_size
    return whole if whole <= LARGEST_GROUP else WIDE_GROUP


class Hessian:
    """Hessian x^T x of the activations x [T, K] of a matrix, block-diagonal over groups of columns."""

    def __init__(self, columns: int, group: int = GROUP) -> None:
        self._sums = np.zeros((-(-columns // group), group, group), np.float32)

    def add(self, rows: Floats) -> None:
        """Accumulate activations [T, K], float32."""
        groups, group, _ = self._sums.shape
        padded = np.pad(rows, ((0, 0), (0, groups * group - rows.shape[1])))
        by_group = padded.reshape(len(rows), groups, group).transpose(1, 0, 2)
        self._sums += by_group.transpose(0, 2, 1) @ by_group

    def error_propagation(self) -> Floats:
        """Return how the error of a column changes the later columns: float32 [groups, group, group].

        Each group is U / diag(U), rows divided by their diagonal entry, where U is the upper Cholesky factor
        of the inverse Hessian (U^T U = inverse of the damped Hessian). The error e of column i changes
        column j > i by -e * error_propagation[i, j]. Columns whose inputs were always zero neither send
        nor receive errors.
        """
        moments = self._sums.astype(np.float64)
        diagonal = np.einsum("gii->gi", moments)  # a writable view
        seen = diagonal > 0
        mean = diagonal.sum(axis=1) / np.maximum(seen.sum(axis=1), 1)
        mean[mean == 0] = 1
        diagonal += np.where(seen, DAMPING, 1) * mean[:, None]
        upper = _inverse_factor(moments)
        upper /= np.einsum("gii->gi", upper).copy()[..., None]
        return upper.astype(np.float32)


def _inverse_factor(moments: Doubles) -> Doubles:
    """Return the upper triangular U, U^T U = M^-1, of positive definite matrices M [groups, n, n].

    M read backwards has a Cholesky factor which, read backwards, is an upper triangular V with V V^T = M.
    Then U = V^-1, so that M itself is never inverted.
    """
    backwards = np.linalg.cholesky(moments[:, ::-1, ::-1])[:, ::-1, ::-1]
    return _inverse_of_upper(np.ascontiguousarray(backwards))


def _inverse_of_upper(upper: Doubles) -> Doubles:
    """Invert upper triangular matrices [groups, n, n] by halves: a third of the work of a dense inverse."""
    size = upper.shape[1]
    if size <= SMALLEST_HALF:
        return np.triu(np.linalg.inv(upper))
    half = size // 2
    result = np.zeros_like(upper)
    first = result[:, :half, :half] = _inverse_of_upper(upper[:, :half, :half])
    second = result[:, half:, half:] = _inverse_of_upper(upper[:, half:, half:])
    result[:, :half, half:] = -(first @ upper[:, :half, half:]) @ second
    return result


def quantize_with_feedback(
    weight: Floats,
    error_propagation: Floats,
    bits: int,
    block_size: int,
    scale_dtype: ScaleType = np.float32,
    *,
    asymmetric: bool = False,
) -> Quantized:
    """Quantize to the layout and grids of `quantize`, with error feedback.

    weight: float32 [N, K]. error_propagation: float32 [groups, group, group], of the inputs of this matrix;
    group is a multiple of block_size. The grid of a block is chosen after the errors of earlier blocks were
    propagated to its columns.
    """
    columns = _grouped(weight, error_propagation)  # [groups, group, N]
    codes = np.empty(columns.shape, np.uint8)
    make = Grid.asymmetric if asymmetric else Grid.symmetric
    grids = []
    for start in range(0, error_propagation.shape[1], block_size):
        block = slice(start, start + block_size)
        grid = make(columns[:, block].max(axis=1), columns[:, block].min(axis=1), bits, scale_dtype)
        codes[:, block] = _round_block(columns, error_propagation, block, grid) + grid.zeros[:, None]
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


def quantize_channels_with_feedback(weight: Floats, error_propagation: Floats) -> QuantizedChannels:
    """Quantize as `quantize_channels` does, with one scale per row, with error feedback."""
    columns = _grouped(weight, error_propagation)
    scales = channel_scales(weight)
    steps = np.broadcast_to(scales, (len(columns), len(weight)))
    grid = Grid(steps, np.full_like(steps, 127), top=254)
    codes = np.empty(columns.shape, np.int8)
    for start in range(0, error_propagation.shape[1], COLUMNS_AT_ONCE):
        block = slice(start, start + COLUMNS_AT_ONCE)
        codes[:, block] = _round_block(columns, error_propagation, block, grid)
    flat = codes.reshape(-1, len(weight))[: weight.shape[1]]
    return QuantizedChannels(np.ascontiguousarray(flat.T), scales)


def _grouped(weight: Floats, error_propagation: Floats) -> Floats:
    """Copy [N, K] to [groups, group, N]; K is padded with zeros."""
    groups, group, _ = error_propagation.shape
    padded = np.zeros((groups * group, len(weight)), np.float32)
    padded[: weight.shape[1]] = weight.T
    return padded.reshape(groups, group, len(weight))


def _round_block(columns: Floats, error_propagation: Floats, block: slice, grid: Grid) -> Floats:
    """Return the codes of columns[:, block], minus the zero point, and propagate the errors in place.

    All columns after each rounded one are updated, within the block and behind it.
    """
    codes, errors = np.empty_like(columns[:, block]), np.empty_like(columns[:, block])
    for index, column in enumerate(range(block.start, block.stop)):
        codes[:, index] = grid.round(columns[:, column])
        errors[:, index] = columns[:, column] - codes[:, index] * grid.scales
        behind = slice(column + 1, block.stop)
        columns[:, behind] -= error_propagation[:, column, behind, None] * errors[:, index, None]
    columns[:, block.stop :] -= error_propagation[:, block, block.stop :].transpose(0, 2, 1) @ errors
    return codes
