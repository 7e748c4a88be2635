"""Arrays of float32 as JSON: numbers that read back equal, or base64 of their bytes."""

from __future__ import annotations

import base64

import numpy as np
from numpy.typing import NDArray


def shortest(values: NDArray[np.float32]) -> list[float]:
    """Return float32 values as those float64 that print as the float32's shortest decimal.

    >>> shortest(np.array([0.1, -2.5], np.float32))
    [0.1, -2.5]
    """
    return [float(str(value)) for value in values]


def base64_of(values: NDArray[np.float32]) -> str:
    """Return the bytes of float32 values, little endian, in base64.

    >>> np.frombuffer(base64.b64decode(base64_of(np.array([0.1, -2.5], np.float32))), "<f4").tolist()
    [0.10000000149011612, -2.5]
    """
    return base64.b64encode(values.astype("<f4").tobytes()).decode()
