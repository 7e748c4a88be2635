"""Weights of a hollow pair: random numbers in the layout that the export gives them.

Matrices repeat a short block of random numbers, and every layer is the first one: the bytes of a real pair's
layer and head, not those of its file.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from stepscore.engine.cuda.lossless import ordered
from stepscore_export.checkpoint.weight_source import Members
from stepscore_export.options import ExportOptions
from stepscore_export.quantization.lossless import EncodedRows, encode, joined
from stepscore_export.quantization.rounding import Floats
from stepscore_export.weights.difference import Role
from stepscore_export.weights.layout import LosslessMatrix, Matrix, UnitWeights
from stepscore_export.weights.row_blocks import RowStack
from stepscore_export.weights.weight_file import ALIGNMENT, TensorRef, numpy_dtype
from stepscore_export.weights.writer import UnitWriter

DISTANCE = 0.005
UNCHANGED, FAR = 0.81, 0.04
"""Shares of weights that are equal in both models, and that are far apart: those of the real pair."""
MOST_STEPS = 7
BLOCK_BYTES = 1 << 23
SCALES = 1 << 16
SEED = 1


def hollow_unit(members: Members, file: RandomWeights, options: ExportOptions) -> UnitWeights:
    """Append the weights of a unit and return where they are; all layers are the same bytes."""
    writer = HollowWriter(members, file, options)
    embedding, layer, norm = writer.embedding(), writer.layer(0), writer.final_norm()
    return UnitWeights(embedding, (layer,) * writer.num_layers, norm, writer.head(embedding), writer.rotary())


class HollowWriter(UnitWriter):
    """Writes a unit as the export does, but for lossless differences, which depend on what is read."""

    def __init__(self, members: Members, file: RandomWeights, options: ExportOptions) -> None:
        super().__init__(members, file, options, lambda _count: None)
        self._random_file = file

    def _stored(
        self, role: Role, name: str, stacks: list[RowStack], error_propagation: Floats | None
    ) -> Matrix:
        if not self._options.lossless:
            return super()._stored(role, name, stacks, error_propagation)
        file, shape = self._random_file, (stacks[0].rows, stacks[0].columns)
        rows = random_rows(*shape)
        difference = joined(rows)
        return LosslessMatrix(
            file.append(f"{name}.reference", self._options.storage, shape, ()),
            file.append_array(f"{name}.flags", ir.DataType.UINT8, difference.flags),
            file.append_array(f"{name}.codes", ir.DataType.UINT8, difference.codes),
            file.append_array(f"{name}.starts", ir.DataType.INT32, difference.starts),
            file.append_array(f"{name}.escapes", ir.DataType.UINT16, difference.escapes),
            sum(each.unchanged for each in rows),
        )


def random_rows(rows: int, columns: int) -> list[EncodedRows]:
    """Return a valid difference of two matrices [rows, columns] of which UNCHANGED is equal.

    It repeats a block of rows, and fits any reference.
    """
    of_block = max(1, BLOCK_BYTES // 8 // columns)
    whole, rest = divmod(rows, of_block)
    return [_encoded_block(of_block, columns)] * whole + ([_encoded_block(rest, columns)] if rest else [])


@cache
def _encoded_block(rows: int, columns: int) -> EncodedRows:
    random = np.random.default_rng(SEED)
    values = random.standard_normal((rows, columns), dtype=np.float32)
    reference = (values.view(np.uint32) >> 16).astype(np.uint16)  # bf16, rounded down
    kind = random.random(reference.shape, dtype=np.float32)
    steps = random.integers(1, MOST_STEPS + 1, reference.shape, np.int16)
    steps *= random.choice(np.array([-1, 1], np.int16), reference.shape)
    steps[kind < UNCHANGED] = 0
    steps[kind > 1 - FAR] = 1 << 12
    return encode(reference, ordered((ordered(reference) + steps).view(np.uint16)).view(np.uint16))


class RandomWeights:
    """A weight file of random matrices (a TensorSink)."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb")
        random = np.random.default_rng(SEED)
        self._normals = random.standard_normal(BLOCK_BYTES // 4, dtype=np.float32)
        self._codes = random.bytes(BLOCK_BYTES)
        self.num_bytes = 0

    def append(
        self, name: str, dtype: ir.DataType, shape: tuple[int, ...], blocks: Iterable[NDArray[Any]]
    ) -> TensorRef:
        """Write a tensor of random numbers; only the blocks of rotary tables are read."""
        return self._placed(name, dtype, shape, self._content(name, dtype, shape, blocks))

    def append_array(self, name: str, dtype: ir.DataType, array: NDArray[Any]) -> TensorRef:
        """Write a tensor as it is."""
        return self._placed(name, dtype, array.shape, array.tobytes())

    def _placed(self, name: str, dtype: ir.DataType, shape: tuple[int, ...], content: bytes) -> TensorRef:
        """Write the content until the tensor is full."""
        self._file.write(b"\0" * (-self.num_bytes % ALIGNMENT))
        ref = TensorRef(name, dtype, shape, -(-self.num_bytes // ALIGNMENT) * ALIGNMENT)
        if ref.num_bytes:
            whole, rest = divmod(ref.num_bytes, len(content))
            for _ in range(whole):
                self._file.write(content)
            self._file.write(content[:rest])
        self.num_bytes = ref.offset + ref.num_bytes
        return ref

    def _content(
        self, name: str, dtype: ir.DataType, shape: tuple[int, ...], blocks: Iterable[NDArray[Any]]
    ) -> bytes:
        if name.startswith("rotary"):
            return b"".join(np.ascontiguousarray(block).tobytes() for block in blocks)
        if name.endswith((".codes", ".zeros")):
            return self._codes
        if name.endswith(".scales"):  # RMS of uniform codes, so that weights have an RMS of 1 / 60
            codes = 4.6 if ".difference" in name else 73
            size = DISTANCE if ".difference" in name else 1.0
            return np.full(SCALES, size / 60 / codes).astype(numpy_dtype(dtype)).tobytes()
        if len(shape) == 1:
            value = 0.0 if "bias" in name else 1.0
            return np.full(shape, value).astype(numpy_dtype(dtype)).tobytes()
        return (self._normals / math.sqrt(shape[-1])).astype(numpy_dtype(dtype)).tobytes()

    def __enter__(self) -> RandomWeights:
        return self

    def __exit__(self, *_error: object) -> None:
        self._file.close()
