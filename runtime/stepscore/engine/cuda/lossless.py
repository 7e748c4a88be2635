"""Lossless difference: a policy in 16-bit floats, rebuilt bit for bit from the reference and what changed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stepscore.errors import ModelInvalid

ESCAPE = 15
"""The code of a weight whose pattern is stored as it is."""
FIRST_STEP = -7
"""The step of code 0; those up to 8 follow, without 0: a weight with a step of 0 has a flag that says so."""

CHUNK = 1 << 17
"""Weights decoded at a time: the temporary arrays take about 20 bytes a weight."""


@dataclass(frozen=True, slots=True)
class LosslessDifference:
    """The policy's matrix [rows, columns] as the difference from the reference's.

    A weight's step is the difference of the ordered patterns, ordered(policy) - ordered(reference) modulo
    2^16.

    `flags`, uint8 [rows, ceil(columns / 8)]: bit c % 8 of byte c // 8 is set where the step is not 0.
    `codes`, uint8, has one code of 4 bits for each of these, in order, two a byte and the first in the low
    half; the codes of each row start at a byte. `escapes`, uint16, has the policy's pattern for each code 15,
    in order. `starts`, int32 [rows + 1, 2], has the first byte of `codes` and the first of `escapes` of each
    row, and then both lengths.
    """

    flags: NDArray[np.uint8]
    codes: NDArray[np.uint8]
    starts: NDArray[np.int32]
    escapes: NDArray[np.uint16]


def ordered(patterns: NDArray[np.uint16]) -> NDArray[np.int16]:
    """Return the place of each 16-bit float (fp16 or bf16, as a bit pattern) among all of them.

    o(x) = x if x < 0x8000 else 0x7FFF - x, which grows with the value: -0 comes just below +0, NaNs come at
    both ends. Applied twice it gives the pattern: patterns = ordered(o.view(np.uint16)).view(np.uint16).

    >>> ordered(np.array([1.0, 0.0, -0.0, -1.0], np.float16).view(np.uint16)).tolist()
    [15360, 0, -1, -15361]
    """
    signed = patterns.view(np.int16)
    flipped: NDArray[np.int16] = signed >> 15
    flipped &= 0x7FFF
    flipped ^= signed
    return flipped


def decode(reference: NDArray[np.uint16], difference: LosslessDifference, policy: NDArray[np.uint16]) -> None:
    """Write the policy's patterns, uint16 [rows, columns], into `policy`.

    policy = ordered^-1(ordered(reference) + step) modulo 2^16 where a flag is set, else reference.
    Raises ModelInvalid where `starts` is not what flags and codes say.
    """
    lengths = [len(difference.codes), len(difference.escapes)]
    if difference.starts[0].any() or difference.starts[-1].tolist() != lengths:
        raise _damaged(
            f"its rows go from {difference.starts[0].tolist()} to {difference.starts[-1].tolist()}; "
            f"the codes and escapes are {lengths}"
        )
    rows, columns = reference.shape
    step = max(1, CHUNK // max(1, columns))
    for first in range(0, rows, step):
        _decode_rows(reference, difference, policy, first, min(rows, first + step))


def _decode_rows(
    reference: NDArray[np.uint16],
    difference: LosslessDifference,
    policy: NDArray[np.uint16],
    first: int,
    end: int,
) -> None:
    columns = reference.shape[1]
    (first_byte, first_escape), (end_byte, end_escape) = difference.starts[[first, end]].tolist()
    sizes = np.diff(difference.starts[first : end + 1], axis=0)
    flags = difference.flags[first:end]
    changed = np.unpackbits(flags, axis=1, count=columns, bitorder="little").view(np.bool_)
    counts = np.count_nonzero(changed, axis=1)
    _check(first, "bytes of codes", sizes[:, 0], (counts + 1) // 2)
    codes = _unpacked(difference.codes[first_byte:end_byte], counts)
    escaped = np.flatnonzero(codes == ESCAPE)
    bounds = np.searchsorted(escaped, np.concatenate([[0], np.cumsum(counts)]))
    _check(first, "escapes", sizes[:, 1], np.diff(bounds))

    places = np.flatnonzero(changed)
    patterns = reference[first:end].flatten()
    rebuilt = ordered(patterns[places])
    rebuilt += _steps(codes)
    found = ordered(rebuilt.view(np.uint16)).view(np.uint16)
    found[escaped] = difference.escapes[first_escape:end_escape]
    patterns[places] = found
    policy[first:end] = patterns.reshape(end - first, columns)


def _unpacked(packed: NDArray[np.uint8], counts: NDArray[np.intp]) -> NDArray[np.uint8]:
    """Return one code an entry, without the half byte that fills up a row with an odd number of codes."""
    codes = np.empty((len(packed), 2), np.uint8)
    np.bitwise_and(packed, 15, out=codes[:, 0])
    np.right_shift(packed, 4, out=codes[:, 1])
    odd = counts % 2 == 1
    fillers = np.cumsum(counts + odd)[odd] - 1
    return np.delete(codes.ravel(), fillers) if len(fillers) else codes.ravel()


def _steps(codes: NDArray[np.uint8]) -> NDArray[np.int16]:
    """Return the step of each code, and any for an escape."""
    steps = codes.astype(np.int16)
    steps += FIRST_STEP
    steps += steps >= 0
    return steps


def _check(first: int, name: str, stored: NDArray[np.int32], found: NDArray[np.intp]) -> None:
    if not np.array_equal(stored, found):
        row = int(np.flatnonzero(stored != found)[0])
        raise _damaged(
            f"row {first + row} has {found[row]} {name}, but its starts leave room for {stored[row]}"
        )


def _damaged(fault: str) -> ModelInvalid:
    return ModelInvalid(
        f"the difference of a matrix is damaged: {fault}", hint="export the pair again, or copy it again"
    )
