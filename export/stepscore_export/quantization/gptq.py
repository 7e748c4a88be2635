"""Quantize with error feedback (GPTQ, Frantar et al. 2022): later columns compensate earlier errors.

Nearest rounding minimizes the error of a matrix W [N, K]. GPTQ reduces the error of the outputs x W^T on
calibration activations x instead. It rounds the columns one after the other and propagates the error of each
to the later columns, in proportion to the correlation of their inputs.

The Hessian x^T x is kept block-diagonal, for groups of columns (group_of): 80 MB for K = 18,944 instead of
1.4 GB for [K, K]. All groups and all rows are rounded at once. Pure functions: no graph, no files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

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
from stepscore_export.threads import in_order

Doubles = NDArray[np.float64]

GROUP = 128
LARGEST_GROUP = 4096
"""A residual stream of 3,584 channels is one group: 51 MB of float32."""
WIDE_GROUP = 1024
"""Columns per group where one group would be too large: 80 MB of float32 for 18,944 columns."""
COLUMNS_AT_ONCE = 8  # rounded one after the other; their errors reach all later columns in products
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

        def add_group(index: int) -> None:
            group = self._sums.shape[1]
            part = rows[:, index * group : (index + 1) * group]
            self._sums[index, : part.shape[1], : part.shape[1]] += part.T @ part

        for _ in in_order(add_group, range(len(self._sums))):
            pass

    def error_propagation(self) -> Floats:
        """Return how the error of a column changes the later columns: float32 [groups, group, group].

        Each group is U / diag(U), rows divided by their diagonal entry, where U is the upper Cholesky factor
        of the inverse Hessian (U^T U = inverse of the damped Hessian). The error e of column i changes
        column j > i by -e * error_propagation[i, j]. Columns whose inputs were always zero neither send
        nor receive errors.
        """
        return np.stack(list(in_order(_propagation, self._sums)))


def _propagation(sums: Floats) -> Floats:
    upper = _inverse_of_upper(_upper_factor(sums))
    upper /= np.diagonal(upper).copy()[:, None]
    return upper.astype(np.float32)


def _upper_factor(sums: Floats) -> Doubles:
    """Return the upper triangular V, V V^T = M, of the damped Hessian M [n, n] with these sums.

    M read backwards has a Cholesky factor which, read backwards, is V. The inverse U of V has U^T U = M^-1,
    so that M itself is never inverted.
    """
    backwards = sums[::-1, ::-1].astype(np.float64, order="C")
    diagonal = np.einsum("ii->i", backwards)  # a writable view
    seen = diagonal > 0
    mean = diagonal.sum() / max(1, np.count_nonzero(seen)) or 1
    diagonal += np.where(seen, DAMPING, 1) * mean
    factor = np.linalg.cholesky(backwards)
    del backwards, diagonal  # four of these at once would be most of what an export of a 7B model holds
    return np.ascontiguousarray(factor[::-1, ::-1])


def _inverse_of_upper(upper: Doubles) -> Doubles:
    """Invert an upper triangular matrix [n, n] by halves: a third of the work of a dense inverse."""
    size = len(upper)
    if size <= SMALLEST_HALF:
        return np.triu(np.linalg.inv(upper))
    half = size // 2
    result = np.zeros_like(upper)
    first = result[:half, :half] = _inverse_of_upper(upper[:half, :half])
    second = result[half:, half:] = _inverse_of_upper(upper[half:, half:])
    result[:half, half:] = -(first @ upper[:half, half:]) @ second
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
    grids: list[Grid] = []

    def grid_at(column: int) -> Grid:
        if column % block_size == 0:
            block = columns[:, column : column + block_size]
            grids.append(make(block.max(axis=1), block.min(axis=1), bits, scale_dtype))
        return grids[-1]

    def store(block: slice, rounded: Floats) -> None:
        codes[:, block] = rounded + grids[-1].zeros[:, None]

    _round_columns(columns, error_propagation, block_size, grid_at, store)
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
    codes = np.empty(columns.shape, np.int8)
    scales = channel_scales(weight)
    grid = Grid.of(scales, np.full_like(scales, 127), top=254)

    def store(block: slice, rounded: Floats) -> None:
        codes[:, block] = rounded

    _round_columns(columns, error_propagation, COLUMNS_AT_ONCE, lambda _column: grid, store)
    flat = codes.reshape(-1, len(weight))[: weight.shape[1]]
    return QuantizedChannels(np.ascontiguousarray(flat.T), scales)


def _grouped(weight: Floats, error_propagation: Floats) -> Floats:
    """Copy [N, K] to [groups, group, N]; K is padded with zeros."""
    groups, group, _ = error_propagation.shape
    padded = np.zeros((groups * group, len(weight)), np.float32)
    padded[: weight.shape[1]] = weight.T
    return padded.reshape(groups, group, len(weight))


def _round_columns(
    columns: Floats,
    error_propagation: Floats,
    block_size: int,
    grid_at: Callable[[int], Grid],
    store: Callable[[slice, Floats], None],
) -> None:
    """Round columns [groups, group, N] in order, and change those behind by the errors of those before.

    `grid_at(column)` is asked before COLUMNS_AT_ONCE columns or fewer are rounded, of which a block of
    block_size columns holds several; their codes minus the zero point go to `store`. Columns become their
    errors.
    """
    for first, second in _by_halves(0, columns.shape[1], block_size):
        if second is None:
            grid = grid_at(first.start)
            store(first, _round_together(columns, error_propagation, first.start, first.stop, grid))
        else:
            columns[:, second] -= error_propagation[:, first, second].transpose(0, 2, 1) @ columns[:, first]


def _by_halves(start: int, stop: int, block_size: int) -> Iterator[tuple[slice, slice | None]]:
    """Yield (columns to round, None), and (columns that were rounded, columns behind that they change).

    So almost all changes are products of large matrices. A block is one of the halves or parts of them.

    >>> [(first.start, second and second.stop) for first, second in _by_halves(0, 32, block_size=16)]
    [(0, None), (0, 16), (8, None), (0, 32), (16, None), (16, 32), (24, None)]
    """
    size = stop - start
    if size <= COLUMNS_AT_ONCE:
        yield slice(start, stop), None
        return
    unit = block_size if size > block_size else COLUMNS_AT_ONCE
    middle = start + max(1, size // unit // 2) * unit
    yield from _by_halves(start, middle, block_size)
    yield slice(start, middle), slice(middle, stop)
    yield from _by_halves(middle, stop, block_size)


def _round_together(columns: Floats, error_propagation: Floats, start: int, stop: int, grid: Grid) -> Floats:
    """Round columns [start:stop] one after the other, and leave their errors in their place."""
    codes = np.empty_like(columns[:, start:stop])
    for index, column in enumerate(range(start, stop)):
        values, code = columns[:, column], codes[:, index]
        grid.round(values, out=code)
        values -= code * grid.scales
        behind = slice(column + 1, stop)
        columns[:, behind] -= error_propagation[:, column, behind, None] * values[:, None]
    return codes
