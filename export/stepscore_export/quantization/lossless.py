"""Encode a policy without loss as the difference from a reference, both in one 16-bit float type."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stepscore.engine.cuda.lossless import ESCAPE, FIRST_STEP, LosslessDifference, ordered
from stepscore_export.quantization.rounding import pack

PLAIN_BITS = 16
"""Bits a weight of the policy takes where it is stored as it is."""


@dataclass(frozen=True, slots=True)
class EncodedRows:
    """A block of rows in the layout of LosslessDifference, whose `starts` are known when all rows are.

    `changed` and `escaped`, int32 [rows], count the weights with a flag and those with an escape.
    """

    flags: NDArray[np.uint8]
    codes: NDArray[np.uint8]
    escapes: NDArray[np.uint16]
    changed: NDArray[np.int32]
    escaped: NDArray[np.int32]
    columns: int

    @property
    def unchanged(self) -> int:
        """Number of weights that are the same in both models, bit for bit."""
        return len(self.flags) * self.columns - int(self.changed.sum())

    @property
    def sizes(self) -> NDArray[np.int32]:
        """Bytes of codes and number of escapes of each row, int32 [rows, 2]."""
        return np.stack([(self.changed + 1) // 2, self.escaped], axis=1)


def encode(reference: NDArray[np.uint16], policy: NDArray[np.uint16]) -> EncodedRows:
    """Encode bit patterns, uint16 [rows, columns] each; any patterns are allowed, NaNs too.

    step = ordered(policy) - ordered(reference) modulo 2^16. A weight takes 1 bit if its step is 0, 5 bits if
    it is in -7 .. 8, else 21.

    >>> models = np.array([[1.0, -2.0, 0.5, 0.0], [1.0, -2.002, 0.5005, 7.0]], np.float16).view(np.uint16)
    >>> rows = encode(models[:1], models[1:])
    >>> rows.flags.tolist(), [f"{byte:02x}" for byte in rows.codes], rows.escapes.view(np.float16).tolist()
    ([[14]], ['76', '0f'], [7.0])
    """
    steps = ordered(policy)
    steps -= ordered(reference)
    differs = steps != 0
    places = np.flatnonzero(differs)
    codes = _codes(steps.reshape(-1)[places])
    escapes = np.flatnonzero(codes == ESCAPE)
    changed = np.add.reduce(differs.view(np.uint8), axis=1, dtype=np.int32)
    ends = np.cumsum(changed, dtype=np.int64)
    return EncodedRows(
        flags=np.packbits(differs, axis=1, bitorder="little"),
        codes=pack(_filled(codes, changed, ends), 4),
        escapes=policy.reshape(-1)[places[escapes]],
        changed=changed,
        escaped=np.diff(np.searchsorted(escapes, ends), prepend=0).astype(np.int32),
        columns=policy.shape[1],
    )


def joined(blocks: Sequence[EncodedRows]) -> LosslessDifference:
    """Return the difference of a whole matrix from its blocks of rows, first to last.

    Raises OverflowError where a start does not fit 32 bits: 4 billion changed weights in one matrix.
    """
    starts = np.zeros((sum(len(block.changed) for block in blocks) + 1, 2), np.int64)
    np.cumsum(np.concatenate([block.sizes for block in blocks]), axis=0, out=starts[1:])
    if starts[-1].max() > np.iinfo(np.int32).max:
        raise OverflowError(f"the codes or escapes of a matrix are too many: {starts[-1].tolist()}")
    return LosslessDifference(
        flags=np.concatenate([block.flags for block in blocks]),
        codes=np.concatenate([block.codes for block in blocks]),
        starts=starts.astype(np.int32),
        escapes=np.concatenate([block.escapes for block in blocks]),
    )


def bits_per_weight(blocks: Sequence[EncodedRows]) -> float:
    """Return the bits a weight of the policy takes if coded, to compare with PLAIN_BITS; 0 for no weights.

    8 * (rows * ceil(columns / 8) + bytes of codes + 2 * escapes + 8 * (rows + 1)) / (rows * columns): flags,
    codes, escapes and starts.
    """
    num_bytes = sum(
        each.flags.nbytes + each.codes.nbytes + each.escapes.nbytes + 8 * len(each.changed) for each in blocks
    )
    weights = sum(len(each.changed) * each.columns for each in blocks)
    return 8 * (num_bytes + 8) / weights if weights else 0.0


def _codes(steps: NDArray[np.int16]) -> NDArray[np.uint8]:
    codes = steps - (steps > 0)
    codes -= FIRST_STEP
    unsigned = codes.view(np.uint16)  # what is below the first code is above the last one too
    np.minimum(unsigned, ESCAPE, out=unsigned)
    return unsigned.astype(np.uint8)


def _filled(
    codes: NDArray[np.uint8], changed: NDArray[np.int32], ends: NDArray[np.int64]
) -> NDArray[np.uint8]:
    """Add a code 0 after each row with an odd number of codes; `ends` are the ends of the rows."""
    odd = ends[changed % 2 == 1]
    return np.insert(codes, odd, 0) if len(odd) else codes
