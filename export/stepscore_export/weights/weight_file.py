"""The weight file of one unit: tensors appended in row blocks, hashed as they are written."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Protocol

import ml_dtypes
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from stepscore.artifact.manifest import FileEntry
from stepscore.fileio import os_errors_as_output_errors

ALIGNMENT = 4096  # a page: ONNX Runtime maps initializers from the file instead of reading them

_DTYPES: Mapping[ir.DataType, np.dtype[Any]] = MappingProxyType(
    {
        ir.DataType.FLOAT: np.dtype(np.float32),
        ir.DataType.FLOAT16: np.dtype(np.float16),
        ir.DataType.BFLOAT16: np.dtype(ml_dtypes.bfloat16),
        ir.DataType.UINT8: np.dtype(np.uint8),
        ir.DataType.INT8: np.dtype(np.int8),
        ir.DataType.INT4: np.dtype(np.uint8),  # two a byte
    }
)


def numpy_dtype(dtype: ir.DataType) -> np.dtype[Any]:
    """Return the numpy type whose bytes are those of an ONNX type."""
    return _DTYPES[dtype]


def onnx_dtype(dtype: np.dtype[Any]) -> ir.DataType:
    """Return the ONNX type of a numpy type that checkpoints are stored in."""
    return next(onnx for onnx, stored in _DTYPES.items() if stored == dtype)


@dataclass(frozen=True, slots=True)
class TensorRef:
    """Where a tensor's bytes are in its weight file."""

    name: str
    dtype: ir.DataType
    shape: tuple[int, ...]
    offset: int

    @property
    def num_bytes(self) -> int:
        """Size of the tensor's data."""
        return -(-math.prod(self.shape) * self.dtype.bitwidth // 8)

    def part(self, start: int, stop: int) -> TensorRef:
        """Name rows [start:stop] of the same bytes; ValueError where the first row begins within a byte."""
        skipped_bits = start * math.prod(self.shape[1:]) * self.dtype.bitwidth
        if skipped_bits % 8:
            raise ValueError(f"row {start} of {self.name} does not begin with a byte")
        shape = (stop - start, *self.shape[1:])
        return TensorRef(f"{self.name}.{start}", self.dtype, shape, self.offset + skipped_bits // 8)


class TensorSink(Protocol):
    """Where tensors go, one after the other."""

    def append(
        self, name: str, dtype: ir.DataType, shape: tuple[int, ...], blocks: Iterable[NDArray[Any]]
    ) -> TensorRef:
        """Take the blocks of one tensor, in order; they fill `shape` exactly."""
        ...


class SizeOnly:
    """Takes tensors without looking at them: how large would the file be?"""

    def __init__(self) -> None:
        self.num_bytes = 0

    def append(
        self,
        name: str,
        dtype: ir.DataType,
        shape: tuple[int, ...],
        blocks: Iterable[NDArray[Any]],
    ) -> TensorRef:
        """Leave the place that a WeightFile would take."""
        ref = TensorRef(name, dtype, shape, -(-self.num_bytes // ALIGNMENT) * ALIGNMENT)
        self.num_bytes = ref.offset + ref.num_bytes
        return ref


class WeightFile:
    """Append-only writer; every tensor starts at a multiple of ALIGNMENT."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with os_errors_as_output_errors(path):
            self._file = path.open("xb")
        self._hash = hashlib.sha256()
        self._position = 0

    def append(
        self, name: str, dtype: ir.DataType, shape: tuple[int, ...], blocks: Iterable[NDArray[Any]]
    ) -> TensorRef:
        """Write the blocks of one tensor, in order; they must fill `shape` exactly."""
        self._write(b"\0" * (-self._position % ALIGNMENT))
        ref = TensorRef(name, dtype, shape, self._position)
        for block in blocks:
            if block.dtype != numpy_dtype(dtype):
                raise TypeError(f"{name}: block of {block.dtype}, not {dtype.name}")
            self._write(np.ascontiguousarray(block).reshape(-1).view(np.uint8).data)
        if self._position - ref.offset != ref.num_bytes:
            written = self._position - ref.offset
            raise ValueError(f"{name}: {written} bytes written, {shape} needs {ref.num_bytes}")
        return ref

    def close(self) -> FileEntry:
        """Flush to the disk and return the file's size and hash."""
        with os_errors_as_output_errors(self._path):
            self._file.flush()
            self._file.close()
        return FileEntry(self._position, self._hash.hexdigest())

    def __enter__(self) -> WeightFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(OSError):  # what could not be written was said already; close flushes it once more
            self._file.close()

    def _write(self, data: bytes | memoryview) -> None:
        with os_errors_as_output_errors(self._path):
            self._file.write(data)
        self._hash.update(data)
        self._position += len(data)
