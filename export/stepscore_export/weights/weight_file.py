"""Write the weight file of one unit: append tensors in row blocks, and hash them while writing."""

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

ALIGNMENT = 4096  # page size, so that ONNX Runtime can memory-map initializers instead of reading them

_DTYPES: Mapping[ir.DataType, np.dtype[Any]] = MappingProxyType(
    {
        ir.DataType.FLOAT: np.dtype(np.float32),
        ir.DataType.FLOAT16: np.dtype(np.float16),
        ir.DataType.BFLOAT16: np.dtype(ml_dtypes.bfloat16),
        ir.DataType.UINT8: np.dtype(np.uint8),
        ir.DataType.INT8: np.dtype(np.int8),
        ir.DataType.INT32: np.dtype(np.int32),
        ir.DataType.UINT16: np.dtype(np.uint16),
        ir.DataType.INT4: np.dtype(np.uint8),  # two values per byte
    }
)


def numpy_dtype(dtype: ir.DataType) -> np.dtype[Any]:
    """Return the numpy type with the byte layout of an ONNX type."""
    return _DTYPES[dtype]


def onnx_dtype(dtype: np.dtype[Any]) -> ir.DataType:
    """Return the ONNX type of a checkpoint's numpy type."""
    return next(onnx for onnx, stored in _DTYPES.items() if stored == dtype)


@dataclass(frozen=True, slots=True)
class TensorRef:
    """Name, type, shape and byte offset of a tensor in its weight file."""

    name: str
    dtype: ir.DataType
    shape: tuple[int, ...]
    offset: int

    @property
    def num_bytes(self) -> int:
        """Return the size of the data in bytes."""
        return -(-math.prod(self.shape) * self.dtype.bitwidth // 8)

    def part(self, start: int, stop: int) -> TensorRef:
        """Return rows [start:stop]; they refer to the same bytes.

        Raises ValueError if the first row is not byte-aligned.
        """
        skipped_bits = start * math.prod(self.shape[1:]) * self.dtype.bitwidth
        if skipped_bits % 8:
            raise ValueError(f"row {start} of {self.name} is not byte-aligned")
        shape = (stop - start, *self.shape[1:])
        return TensorRef(f"{self.name}.{start}", self.dtype, shape, self.offset + skipped_bits // 8)


class TensorSink(Protocol):
    """Destination of tensors, which are appended one after the other."""

    def append(
        self, name: str, dtype: ir.DataType, shape: tuple[int, ...], blocks: Iterable[NDArray[Any]]
    ) -> TensorRef:
        """Append one tensor, given as consecutive blocks that fill `shape` exactly."""
        ...


class SizeOnly:
    """Compute the size of a weight file without reading blocks or writing anything."""

    def __init__(self) -> None:
        self.num_bytes = 0

    def append(
        self,
        name: str,
        dtype: ir.DataType,
        shape: tuple[int, ...],
        blocks: Iterable[NDArray[Any]],
    ) -> TensorRef:
        """Reserve the bytes that a WeightFile would write."""
        ref = TensorRef(name, dtype, shape, -(-self.num_bytes // ALIGNMENT) * ALIGNMENT)
        self.num_bytes = ref.offset + ref.num_bytes
        return ref


class InMemory:
    """Hold the tensors of a weight file as arrays, by name."""

    def __init__(self) -> None:
        self.arrays: dict[str, NDArray[Any]] = {}

    def append(
        self, name: str, dtype: ir.DataType, shape: tuple[int, ...], blocks: Iterable[NDArray[Any]]
    ) -> TensorRef:
        """Hold one tensor, given as consecutive blocks; ValueError if they do not fill `shape` exactly."""
        array = self.arrays[name] = np.empty(shape, numpy_dtype(dtype))
        flat, position = array.reshape(-1), 0
        for block in blocks:
            flat[position : position + block.size] = block.reshape(-1)
            position += block.size
        if position != flat.size:
            raise ValueError(f"{name}: shape {shape} has {flat.size} numbers, but the blocks have {position}")
        return TensorRef(name, dtype, shape, offset=0)


class WeightFile:
    """Append-only writer; each tensor starts at a multiple of ALIGNMENT bytes."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with os_errors_as_output_errors(path):
            self._file = path.open("xb")
        self._hash = hashlib.sha256()
        self._position = 0

    def append(
        self, name: str, dtype: ir.DataType, shape: tuple[int, ...], blocks: Iterable[NDArray[Any]]
    ) -> TensorRef:
        """Write one tensor, given as consecutive blocks, and return where it is.

        Raises TypeError if a block has another dtype, ValueError if the blocks do not fill `shape` exactly.
        """
        self._write(b"\0" * (-self._position % ALIGNMENT))
        ref = TensorRef(name, dtype, shape, self._position)
        for block in blocks:
            if block.dtype != numpy_dtype(dtype):
                raise TypeError(f"{name}: expected blocks of {dtype.name}, found {block.dtype}")
            self._write(np.ascontiguousarray(block).reshape(-1).view(np.uint8).data)
        if self._position - ref.offset != ref.num_bytes:
            written = self._position - ref.offset
            raise ValueError(
                f"{name}: shape {shape} needs {ref.num_bytes} bytes, but the blocks have {written}"
            )
        return ref

    def close(self) -> FileEntry:
        """Flush and close the file; return its size in bytes and SHA-256."""
        with os_errors_as_output_errors(self._path):
            self._file.flush()
            self._file.close()
        return FileEntry(self._position, self._hash.hexdigest())

    def __enter__(self) -> WeightFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(OSError):  # a write error was raised already, and close() retries the flush
            self._file.close()

    def _write(self, data: bytes | memoryview) -> None:
        with os_errors_as_output_errors(self._path):
            self._file.write(data)
        self._hash.update(data)
        self._position += len(data)
