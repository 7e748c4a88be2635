"""Name the tensors of a unit as tensors.json does (stepscore/artifact/tensor_table.py)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields

import msgspec

from stepscore.artifact.generic_graphs import (
    FINAL_NORM,
    INPUT_NORM,
    KEY_NORM,
    MATRICES,
    POST_NORM,
    QKV_BIAS,
    QUERY_NORM,
    ROTARY_COS,
    ROTARY_SIN,
)
from stepscore.artifact.tensor_table import TensorEntry
from stepscore_export.weights.layout import (
    FloatMatrix,
    LayerWeights,
    LosslessMatrix,
    Matrix,
    SignedDifferenceMatrix,
    SignedMatrix,
    TwoFloatMatrices,
    UnitWeights,
    Vectors,
)
from stepscore_export.weights.weight_file import TensorRef, numpy_dtype

Named = Iterator[tuple[str, TensorRef]]


def tensor_table(weights: UnitWeights, models: Sequence[str]) -> bytes:
    """Return the bytes of tensors.json: what the generic graphs read, by name."""
    named = dict(_all(weights, models))
    entries = {name: _entry(ref) for name, ref in named.items()}
    return msgspec.json.format(msgspec.json.encode(entries), indent=1) + b"\n"


def _all(weights: UnitWeights, models: Sequence[str]) -> Named:
    for index, layer in enumerate(weights.layers):
        for name, vectors in _layer_vectors(layer):
            yield from _vectors(f"layers.{index}.{name}", vectors, models)
        for name in MATRICES:
            yield from _matrix(f"layers.{index}.{name}", getattr(layer, name))
    yield from _vectors(FINAL_NORM, weights.norm, models)
    yield from _vectors(ROTARY_COS, weights.rotary.cos, models)
    yield from _vectors(ROTARY_SIN, weights.rotary.sin, models)
    for tile in weights.head:
        yield from _matrix(f"head.{tile.start}", tile.matrix)


def _layer_vectors(layer: LayerWeights) -> Iterator[tuple[str, Vectors]]:
    yield INPUT_NORM, layer.input_norm
    if layer.qkv_bias is not None:
        yield QKV_BIAS, layer.qkv_bias
    if layer.qk_norms is not None:
        yield from ((QUERY_NORM, layer.qk_norms.query), (KEY_NORM, layer.qk_norms.key))
    yield POST_NORM, layer.post_norm


def _vectors(name: str, vectors: Vectors, models: Sequence[str]) -> Named:
    if len(models) == 1:
        yield name, vectors[0]
    else:
        yield from ((f"{name}.{model}", ref) for model, ref in zip(models, vectors, strict=True))


def _matrix(name: str, matrix: Matrix) -> Named:
    match matrix:
        case FloatMatrix(values):
            yield name, values
        case SignedMatrix():
            yield from _signed(name, matrix)
        case SignedDifferenceMatrix(base, difference):
            yield from _signed(f"{name}.base", base)
            yield from _signed(f"{name}.difference", difference)
        case LosslessMatrix() | TwoFloatMatrices():
            yield from _fields(name, matrix)
        case _:
            raise TypeError(f"{name} is a {type(matrix).__name__}, which no generic graph reads")


def _fields(name: str, matrix: LosslessMatrix | TwoFloatMatrices) -> Named:
    for field in fields(matrix):
        value = getattr(matrix, field.name)
        if isinstance(value, TensorRef):
            yield f"{name}.{field.name}", value


def _signed(name: str, matrix: SignedMatrix) -> Named:
    yield from ((f"{name}.codes", matrix.codes), (f"{name}.scales", matrix.scales))
    if matrix.zeros is not None:
        yield f"{name}.zeros", matrix.zeros


def _entry(ref: TensorRef) -> TensorEntry:
    integers = ref.dtype.is_integer()
    name = ref.dtype.name.lower() if integers else numpy_dtype(ref.dtype).name
    return msgspec.convert({"type": name, "shape": ref.shape, "offset": ref.offset}, TensorEntry)
