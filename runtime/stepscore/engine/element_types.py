"""Element types of ONNX tensors, and float32 arrays in them; numpy has no bfloat16 and no int4."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

FLOAT, FLOAT16, BFLOAT16 = 1, 10, 16
ONNX_TYPES: Mapping[str, int] = MappingProxyType(
    {
        "float32": FLOAT,
        "float16": FLOAT16,
        "bfloat16": BFLOAT16,
        "uint8": 2,
        "int8": 3,
        "uint16": 4,
        "int32": 6,
        "int64": 7,
        "int4": 22,
    }
)
"""Numbers of ONNX's element types by name."""
STORED_AS: Mapping[str, type[np.generic]] = MappingProxyType(
    {"float32": np.float32, "float16": np.float16, "bfloat16": np.uint16}
)
"""NumPy's type for the bytes of floats."""
BITS: Mapping[int, int] = MappingProxyType(
    {FLOAT: 32, FLOAT16: 16, BFLOAT16: 16, 2: 8, 3: 8, 4: 16, 6: 32, 7: 64, 22: 4}
)
"""Bits of an element by ONNX's number of its type."""


def in_type(array: NDArray[np.float32], element_type: int) -> NDArray[Any]:
    """Return float32 values in a floating-point type, contiguous; bfloat16, to nearest even, as uint16.

    It is the array itself where that is so already.
    """
    array = np.ascontiguousarray(array)
    if element_type == BFLOAT16:
        bits = array.view(np.uint32)
        return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return array.astype(np.float16 if element_type == FLOAT16 else np.float32, copy=False)


def as_float32(array: NDArray[Any], element_type: int) -> NDArray[np.float32]:
    """Return values of a floating-point type as float32; those of bfloat16 are given as uint16.

    >>> as_float32(np.array([0x3F80], np.uint16), BFLOAT16)
    array([1.], dtype=float32)
    """
    if element_type == BFLOAT16:
        return (array.astype(np.uint32) << 16).view(np.float32)
    return array.astype(np.float32)
