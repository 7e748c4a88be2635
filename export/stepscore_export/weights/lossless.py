"""Store a matrix of two models without loss: the reference, and what the policy differs in, or the policy."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from stepscore.engine.cuda.lossless import decode
from stepscore.errors import CheckpointCorrupt
from stepscore_export.quantization.lossless import PLAIN_BITS, EncodedRows, bits_per_weight, encode, joined
from stepscore_export.quantization.rounding import Floats
from stepscore_export.threads import in_order
from stepscore_export.weights.layout import LosslessMatrix, Matrix, TwoFloatMatrices, UnitWeights, tensors
from stepscore_export.weights.row_blocks import RowStack
from stepscore_export.weights.weight_file import TensorSink, numpy_dtype

Bits = NDArray[np.uint16]


def store_lossless(
    file: TensorSink, name: str, reference: RowStack, policy: RowStack, dtype: ir.DataType
) -> LosslessMatrix | TwoFloatMatrices:
    """Append a matrix of both models, the policy's in the cheaper form; both are bit for bit those given.

    Raises CheckpointCorrupt where a value is not exact in the 16-bit type: the checkpoint is in another one.
    """
    blocks: list[EncodedRows] = []

    def encoded(block: tuple[Floats, Floats]) -> tuple[Bits, EncodedRows]:
        patterns = [_patterns(values, dtype, name) for values in block]
        rows = encode(*patterns)
        _check(patterns[0], patterns[1], rows, name)
        return patterns[0], rows

    def references() -> Iterator[NDArray[np.generic]]:
        for patterns, rows in in_order(encoded, zip(reference.blocks(), policy.blocks(), strict=True)):
            blocks.append(rows)
            yield patterns.view(numpy_dtype(dtype))

    shape = (reference.rows, reference.columns)
    stored = file.append(f"{name}.reference", dtype, shape, references())
    unchanged = sum(block.unchanged for block in blocks)
    if not blocks or bits_per_weight(blocks) >= PLAIN_BITS:  # an estimate reads no block
        plain = (_patterns(block, dtype, name).view(numpy_dtype(dtype)) for block in policy.again().blocks())
        return TwoFloatMatrices(stored, file.append(f"{name}.policy", dtype, shape, plain), unchanged)
    found = joined(blocks)
    return LosslessMatrix(
        stored,
        file.append(f"{name}.flags", ir.DataType.UINT8, found.flags.shape, (found.flags,)),
        file.append(f"{name}.codes", ir.DataType.UINT8, found.codes.shape, (found.codes,)),
        file.append(f"{name}.starts", ir.DataType.INT32, found.starts.shape, (found.starts,)),
        file.append(f"{name}.escapes", ir.DataType.UINT16, found.escapes.shape, (found.escapes,)),
        unchanged,
    )


@dataclass(frozen=True, slots=True)
class LosslessFacts:
    """Of a lossless pair: the share of equal weights, and the bits that a weight of the policy takes."""

    unchanged: float
    bits: float


def lossless_facts(weights: UnitWeights) -> LosslessFacts | None:
    """Return what a unit says of its lossless differences; None where it has none."""
    found = [each for each in _matrices(weights) if isinstance(each, LosslessMatrix | TwoFloatMatrices)]
    count = sum(math.prod(each.reference.shape) for each in found)
    if not count:
        return None
    stored = sum(ref.num_bytes for each in found for ref in tensors(each) if ref is not each.reference)
    return LosslessFacts(sum(each.unchanged for each in found) / count, 8 * stored / count)


def _matrices(weights: UnitWeights) -> Iterator[Matrix]:
    for layer in weights.layers:
        yield from (layer.qkv, layer.output, layer.gate, layer.up, layer.down)
    yield from (tile.matrix for tile in weights.head)


def _patterns(values: Floats, dtype: ir.DataType, name: str) -> Bits:
    stored = values.astype(numpy_dtype(dtype))
    if not np.array_equal(stored.astype(np.float32), values, equal_nan=True):
        raise CheckpointCorrupt(
            f"{name} holds values that {dtype.name.lower()} does not",
            hint="export without --coding difference",
        )
    return stored.view(np.uint16)


def _check(reference: Bits, policy: Bits, rows: EncodedRows, name: str) -> None:
    """Raise AssertionError unless what is stored gives the policy's bits: never expected."""
    rebuilt = np.empty_like(policy)
    decode(reference, joined([rows]), rebuilt)
    if not np.array_equal(rebuilt, policy):
        raise AssertionError(f"{name}: the lossless difference does not give the policy's weights")
