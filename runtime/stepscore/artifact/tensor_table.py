"""Where the tensors of a unit of a CUDA pair are in its weights.bin, and in which form each matrix is stored.

`tensors.json` maps names to type, shape and offset. A matrix `layers.3.down` is one of

    layers.3.down                                        floats [rows, columns]
    layers.3.down.codes, .scales (, .zeros)              quantized
    layers.3.down.base.codes ..., .difference.codes ...  a base, and a difference that is added for the policy
    layers.3.down.reference, .flags, .codes, .starts, .escapes   the reference's floats, a lossless difference
    layers.3.down.reference, .policy                     the floats of both

Floats are of the type in which a GPU computes, rotary tables of fp32. Vectors (norms, biases, rotary tables)
of a unit of two models have names that end with the model.
The engine hands plain addresses to ONNX Runtime, so every shape and place is checked here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Literal, NoReturn

import msgspec

from stepscore.artifact import generic_graphs as names
from stepscore.artifact.generic_graphs import Decoder, decoders_of
from stepscore.artifact.graph_contract import HEAD_PART_COLUMNS, TILE, WEIGHTS, head_files, layer_file
from stepscore.artifact.manifest import Extent, Manifest, ModelName, Unit
from stepscore.enums import Precision
from stepscore.errors import ModelInvalid

TENSORS = "tensors.json"

Floats = Literal["float32", "float16", "bfloat16"]
ElementType = Literal["float32", "float16", "bfloat16", "int8", "int4", "uint8", "int32", "uint16"]
BITS: Mapping[str, int] = MappingProxyType(
    {
        "float32": 32,
        "float16": 16,
        "bfloat16": 16,
        "int8": 8,
        "int4": 4,
        "uint8": 8,
        "int32": 32,
        "uint16": 16,
    }
)


class TensorEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Element type, shape and byte offset of a tensor in weights.bin; int4 has two elements a byte."""

    type: ElementType
    shape: tuple[int, ...]
    offset: int

    @property
    def num_bytes(self) -> int:
        """Return the size in bytes."""
        return -(-math.prod(self.shape) * BITS[self.type] // 8)


@dataclass(frozen=True, slots=True)
class FloatForm:
    """A matrix of one model in a floating-point type."""

    values: TensorEntry


@dataclass(frozen=True, slots=True)
class BlockForm:
    """A quantized matrix, and the decoder that dequantizes it."""

    codes: TensorEntry
    scales: TensorEntry
    zeros: TensorEntry | None
    decoder: Decoder


@dataclass(frozen=True, slots=True)
class DifferenceForm:
    """A matrix of two models: the reference's, and what is added to it for the policy's."""

    base: BlockForm
    difference: BlockForm


@dataclass(frozen=True, slots=True)
class LosslessForm:
    """A matrix of two models: the reference's floats, and a lossless difference."""

    reference: TensorEntry
    flags: TensorEntry
    codes: TensorEntry
    starts: TensorEntry
    escapes: TensorEntry


@dataclass(frozen=True, slots=True)
class TwoForms:
    """A matrix of two models, the floats of each."""

    reference: TensorEntry
    policy: TensorEntry


Form = FloatForm | BlockForm | DifferenceForm | LosslessForm | TwoForms


@dataclass(frozen=True, slots=True)
class StoredMatrix:
    """A matrix [rows, columns] and how it is stored."""

    rows: int
    columns: int
    form: Form


@dataclass(frozen=True, slots=True)
class Stage:
    """What is on the device at one time: a layer, or a part of the head; `extent` are its bytes in the file.

    Matrices are named as inputs of the layer graph; those of the head by the first token of their tile.
    """

    name: str
    extent: Extent
    matrices: Mapping[str, StoredMatrix]


class TensorTable:
    """The tensors of one unit, checked against its weight file and the architecture."""

    def __init__(self, tensors: Mapping[str, TensorEntry], manifest: Manifest, unit: Unit) -> None:
        self._tensors = tensors
        self._manifest = manifest
        self._unit = unit
        self._floats = "bfloat16" if manifest.precision is Precision.BF16 else "float16"
        self._decoders = {(each.name, each.block_size): each for each in decoders_of(manifest)}

    @classmethod
    def read(cls, folder: Path, manifest: Manifest, unit: Unit) -> TensorTable:
        """Read tensors.json of a unit; raise ModelInvalid where it names bytes outside weights.bin."""
        try:
            tensors = msgspec.json.decode(
                (folder / unit.folder / TENSORS).read_bytes(), type=dict[str, TensorEntry]
            )
        except (ValueError, RecursionError, OSError) as error:
            _refuse(unit, f"cannot be read: {error}")
        size = manifest.files[f"{unit.folder}/{WEIGHTS}"].size
        for name, entry in tensors.items():
            ends = entry.offset, entry.offset + entry.num_bytes
            if min(entry.shape, default=0) < 0 or not 0 <= ends[0] <= ends[1] <= size:
                _refuse(unit, f"has {name[:80]!r} outside {WEIGHTS}")
        return cls(tensors, manifest, unit)

    def stages(self) -> list[Stage]:
        """Return the layers and the parts of the head, in the order in which they run."""
        shape = self._manifest.architecture
        heads = head_files(shape.vocab_size)
        layers = [
            self._stage(layer_file(layer), self._layer(layer)) for layer in range(shape.num_hidden_layers)
        ]
        return layers + [self._stage(name, self._head(index)) for index, name in enumerate(heads)]

    def vectors(self, layer: int, model: ModelName) -> dict[str, TensorEntry]:
        """Return the norms and biases of a layer of one model, by the name of the input."""
        sizes = names.vector_sizes(self._manifest.architecture)
        return {name: self._vector(f"layers.{layer}.{name}", model, size) for name, size in sizes.items()}

    def shared(self, model: ModelName) -> dict[str, TensorEntry]:
        """Return the final norm and the rotary tables of one model, by the name of the input."""
        shape = self._manifest.architecture
        found = {names.FINAL_NORM: self._vector(names.FINAL_NORM, model, shape.hidden_size)}
        for name in (names.ROTARY_COS, names.ROTARY_SIN):
            found[name] = self._entry(self._of_model(name, model), ("float32",))
            positions, width = (*found[name].shape, 0, 0)[:2]
            if width != shape.head_dim // 2 or positions < shape.max_position_embeddings:
                _refuse(self._unit, f"has {name} of shape {list(found[name].shape)}")
        return found

    def _layer(self, layer: int) -> Iterator[tuple[str, StoredMatrix]]:
        for name, (rows, columns) in matrix_shapes(self._manifest).items():
            yield name, self._matrix(f"layers.{layer}.{name}", rows, columns)

    def _head(self, part: int) -> Iterator[tuple[str, StoredMatrix]]:
        shape = self._manifest.architecture
        for start in tile_starts(shape.vocab_size, part):
            rows = min(TILE, shape.vocab_size - start)
            yield str(start), self._matrix(f"head.{start}", rows, shape.hidden_size)

    def _stage(self, name: str, matrices: Iterator[tuple[str, StoredMatrix]]) -> Stage:
        stage = Stage(name, self._unit.extents[name], dict(matrices))
        first, last = stage.extent.offset, stage.extent.offset + stage.extent.size
        for each, matrix in stage.matrices.items():
            for entry in entries(matrix.form):
                if not first <= entry.offset <= entry.offset + entry.num_bytes <= last:
                    _refuse(self._unit, f"has a tensor of {each!r} outside {name}")
        return stage

    def _matrix(self, name: str, rows: int, columns: int) -> StoredMatrix:
        return StoredMatrix(rows, columns, self._form(name, rows, columns))

    def _form(self, name: str, rows: int, columns: int) -> Form:
        if name in self._tensors:
            return FloatForm(self._entry(name, (self._floats,), (rows, columns)))
        if f"{name}.base.codes" in self._tensors:
            base = self._blocks(f"{name}.base", rows, columns, "decode")
            return DifferenceForm(base, self._blocks(f"{name}.difference", rows, columns, "add"))
        if f"{name}.reference" not in self._tensors:
            return self._blocks(name, rows, columns, "decode")
        reference = self._entry(f"{name}.reference", (self._floats,), (rows, columns))
        if f"{name}.policy" in self._tensors:
            return TwoForms(reference, self._entry(f"{name}.policy", (self._floats,), (rows, columns)))
        return LosslessForm(
            reference,
            self._entry(f"{name}.flags", ("uint8",), (rows, -(-columns // 8))),
            self._list(f"{name}.codes", "uint8"),
            self._entry(f"{name}.starts", ("int32",), (rows + 1, 2)),
            self._list(f"{name}.escapes", "uint16"),
        )

    def _blocks(self, name: str, rows: int, columns: int, kind: str) -> BlockForm:
        codes = self._entry(f"{name}.codes", ("int8", "int4"))
        zeros = f"{name}.zeros" in self._tensors
        prefix = f"{kind}_{codes.type}{'_zeros' if zeros else ''}"
        decoder = next((each for (known, _), each in self._decoders.items() if known == prefix), None)
        if decoder is None:
            _refuse(self._unit, f"has {name!r} in a form that the manifest does not name")
        blocks = -(-columns // decoder.block_size)
        self._expect(f"{name}.codes", codes, (rows, blocks * decoder.block_size))
        return BlockForm(
            codes,
            self._entry(f"{name}.scales", ("float16",), (rows, blocks)),
            self._entry(f"{name}.zeros", ("int4",), (rows, blocks)) if zeros else None,
            decoder,
        )

    def _list(self, name: str, kind: str) -> TensorEntry:
        entry = self._entry(name, (kind,))
        self._expect(name, entry, (entry.num_bytes * 8 // BITS[kind],))
        return entry

    def _vector(self, name: str, model: ModelName, size: int) -> TensorEntry:
        return self._entry(self._of_model(name, model), (self._floats,), (size,))

    def _of_model(self, name: str, model: ModelName) -> str:
        return name if len(self._unit.models) == 1 else f"{name}.{model}"

    def _entry(self, name: str, types: Sequence[str], shape: tuple[int, ...] | None = None) -> TensorEntry:
        entry = self._tensors.get(name)
        if entry is None:
            _refuse(self._unit, f"does not have {name!r}")
        if entry.type not in types:
            _refuse(self._unit, f"has {name!r} in {entry.type}, expected {' or '.join(types)}")
        if shape is not None:
            self._expect(name, entry, shape)
        return entry

    def _expect(self, name: str, entry: TensorEntry, shape: tuple[int, ...]) -> None:
        if entry.shape != shape:
            _refuse(self._unit, f"has {name!r} of shape {list(entry.shape)}, expected {list(shape)}")


def matrix_shapes(manifest: Manifest) -> dict[str, tuple[int, int]]:
    """Return rows and columns of the matrices of a layer, by the names of the layer graph's inputs."""
    shape = manifest.architecture
    heads = shape.num_attention_heads * shape.head_dim
    projected = heads + 2 * shape.num_key_value_heads * shape.head_dim
    hidden, wide = shape.hidden_size, shape.intermediate_size
    sizes = ((projected, hidden), (hidden, heads), (wide, hidden), (wide, hidden), (hidden, wide))
    return dict(zip(names.MATRICES, sizes, strict=True))


def tile_starts(vocab_size: int, part: int) -> range:
    """Return the first token of each tile in a part of the head.

    >>> list(tile_starts(40_000, 0)), list(tile_starts(40_000, 1))
    ([0, 8192, 16384, 24576], [32768])
    """
    columns = HEAD_PART_COLUMNS
    return range(part * columns, min((part + 1) * columns, vocab_size), TILE)


def entries(form: Form) -> Iterator[TensorEntry]:
    """Yield the tensors of a matrix."""
    match form:
        case FloatForm(values):
            yield values
        case BlockForm(codes, scales, zeros, _):
            yield from (codes, scales) if zeros is None else (codes, scales, zeros)
        case DifferenceForm(base, difference):
            yield from entries(base)
            yield from entries(difference)
        case LosslessForm(reference, flags, codes, starts, escapes):
            yield from (reference, flags, codes, starts, escapes)
        case TwoForms(reference, policy):
            yield from (reference, policy)


def _refuse(unit: Unit, fault: str) -> NoReturn:
    raise ModelInvalid(
        f"{unit.folder}/{TENSORS} {fault}",
        hint="export the pair from checkpoints you trust; do not run this one",
    ) from None
