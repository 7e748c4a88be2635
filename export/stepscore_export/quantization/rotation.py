"""Orthogonal matrices that spread outliers over all channels (QuaRot, Ashkboos et al. 2024). Pure: no files.

A few channels of a transformer's residual stream are 100 times as large as the rest, and set the scale of
every code. Multiplied with a random-like orthogonal matrix they are as large as all others. RMS norm without
a scale commutes with it, so the model computes the same.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stepscore_export.quantization.rounding import Floats

LARGEST_HADAMARD = 64
"""A Hadamard matrix of 2^k columns is applied as Kronecker factors of at most this size."""


@dataclass(frozen=True, slots=True)
class Rotation:
    """The orthogonal matrix R = diag(signs) (Q x H_1 x H_2 x ...), [size, size].

    `signs` [size] are 1 and -1. The Kronecker factors are a random orthogonal matrix Q of the odd part of
    the size, and Hadamard matrices of powers of two, H / sqrt(columns). R costs size * sum(factors) products
    a row where a dense matrix costs size^2.
    """

    signs: Floats
    factors: tuple[Floats, ...]

    @classmethod
    def random(cls, size: int, seed: int) -> Rotation:
        """Return the rotation of this size and seed: the same on every machine, to rounding."""
        rng = np.random.default_rng(seed)
        power = size & -size
        signs = rng.choice(np.array([-1, 1], np.float32), size)
        odd = size // power
        factors = [_orthogonal(odd, rng)] if odd > 1 else []
        while power > 1:
            part = min(power, LARGEST_HADAMARD)
            factors.append(hadamard(part))
            power //= part
        return cls(signs, tuple(factors))

    @property
    def size(self) -> int:
        """Number of rows and columns."""
        return len(self.signs)

    def apply(self, rows: Floats) -> Floats:
        """Return rows [..., size] times R, float32."""
        return _kronecker(rows * self.signs, self.factors)

    def transposed(self, columns: Floats) -> Floats:
        """Return R^T times a matrix [size, K], float32."""
        return self.apply(columns.T).T

    def matrix(self) -> Floats:
        """Return R itself, float32 [size, size]."""
        return self.apply(np.eye(self.size, dtype=np.float32))


def hadamard(size: int) -> Floats:
    """Return the symmetric Hadamard matrix of a power of two, divided by sqrt(size): float32 [size, size].

    >>> hadamard(2).round(3).tolist()
    [[0.7070000171661377, 0.7070000171661377], [0.7070000171661377, -0.7070000171661377]]
    """
    if size < 1 or size & (size - 1):
        raise ValueError(f"{size} is not a power of two")
    matrix = np.ones((1, 1))
    while len(matrix) < size:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return np.asarray(matrix / np.sqrt(size), np.float32)


def _kronecker(rows: Floats, factors: tuple[Floats, ...]) -> Floats:
    """Return rows [..., size] times the Kronecker product of the factors: one axis for each."""
    behind, result = 1, np.ascontiguousarray(rows, np.float32)
    for factor in reversed(factors):
        if behind == 1:
            result = result.reshape(-1, len(factor)) @ factor
        else:
            result = factor.T @ result.reshape(-1, len(factor), behind)
        behind *= len(factor)
    return result.reshape(rows.shape)


def _orthogonal(size: int, rng: np.random.Generator) -> Floats:
    q, r = np.linalg.qr(rng.standard_normal((size, size)))
    turned: NDArray[np.float64] = q * np.sign(np.diag(r))  # one matrix, whatever signs LAPACK takes
    return turned.astype(np.float32)
