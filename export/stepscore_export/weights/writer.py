"""Write the checkpoints of a unit to one weight file: read, convert and append each tensor in row blocks.

A unit of one checkpoint stores its matrices in a floating-point type or quantized. A unit of two, reference
and policy, stores difference-coded matrices (difference.py) and the norms, biases and embeddings of both.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from stepscore.artifact.generic_graphs import KEY_NORM, QUERY_NORM, TABLE_BITS
from stepscore.artifact.graph_contract import TILE
from stepscore.errors import CheckpointCorrupt
from stepscore_export.checkpoint.weight_source import Members, WeightSource
from stepscore_export.families.base import EMBEDDING, FINAL_NORM, DecoderConfig
from stepscore_export.families.rope import Rope, rotary_frequencies
from stepscore_export.options import ExportOptions
from stepscore_export.quantization.error_propagation import LayerErrorPropagation, NoStatistics, Statistics
from stepscore_export.quantization.rounding import Floats, Quantized, quantize, signed
from stepscore_export.threads import in_order
from stepscore_export.weights.difference import SIGNED_TYPES, CodedBlocks, Role, store_coded
from stepscore_export.weights.layout import (
    BlockMatrix,
    FloatMatrix,
    HeadTile,
    LayerWeights,
    Matrix,
    QueryKeyNorms,
    RotaryWeights,
    SignedMatrix,
    Table,
    UnitWeights,
    Vectors,
)
from stepscore_export.weights.lossless import store_lossless
from stepscore_export.weights.row_blocks import Advance, RowStack
from stepscore_export.weights.weight_file import TensorRef, TensorSink, numpy_dtype, onnx_dtype


def store_unit(
    members: Members,
    file: TensorSink,
    options: ExportOptions,
    advance: Advance,
    statistics: Statistics | None = None,
) -> UnitWeights:
    """Append all weights of the unit to `file` and return where they are."""
    statistics = statistics or NoStatistics()
    writer = UnitWriter(members, file, options, advance)
    embedding, rotation = writer.embedding(), writer.rotation()
    layers = tuple(writer.layer(index, statistics.layer(index)) for index in range(writer.num_layers))
    norm = writer.final_norm()
    head = writer.head(embedding, statistics.head())
    return UnitWeights(embedding, layers, norm, head, writer.rotary(), rotation)


def rotary_tables(config: DecoderConfig) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return attention factor * cos and sin of position * frequency, each [positions, head_dim / 2]."""
    frequencies, attention_factor = rotary_frequencies(config.rope, config.head_dim)
    angles = np.arange(config.max_position_embeddings)[:, None] * frequencies
    return attention_factor * np.cos(angles), attention_factor * np.sin(angles)


class UnitWriter:
    """Read from the checkpoints of one unit and write to one weight file."""

    def __init__(self, members: Members, file: TensorSink, options: ExportOptions, advance: Advance) -> None:
        self._checkpoints = tuple(members.values())
        self._names = [f".{name}" for name in members] if len(members) > 1 else [""]
        self._file = file
        self._options = options
        self._advance = advance
        self._config = self._checkpoints[0].config

    @property
    def num_layers(self) -> int:
        """Return the number of decoder layers."""
        return self._config.num_hidden_layers

    def embedding(self) -> tuple[Table, ...]:
        """Store the embedding; a unit of two keeps the type of each checkpoint, for an exact difference.

        Only the rows of the tokens that occur are read, so that its precision costs disk space only.
        """
        if len(self._checkpoints) == 1:
            stack = RowStack(self._checkpoints[0], (EMBEDDING,), self._advance)
            return (self._plain("embed", stack, TABLE_BITS),)
        return tuple(
            self._floats(f"embed{name}", RowStack(each, (EMBEDDING,), self._advance), _stored_dtype(each))
            for each, name in zip(self._checkpoints, self._names, strict=True)
        )

    def rotation(self) -> TensorRef | None:
        """Store what looked-up rows are multiplied with, where the checkpoints are rotated."""
        matrix = self._checkpoints[0].rotation_matrix()
        if matrix is None:
            return None
        return self._file.append("rotation", ir.DataType.FLOAT, matrix.shape, (matrix for _ in (1,)))

    def layer(self, index: int, error_propagation: LayerErrorPropagation | None = None) -> LayerWeights:
        """Store one decoder layer, with error feedback for the matrices that have an error propagation."""
        error_propagation = error_propagation or LayerErrorPropagation()
        source, name = f"model.layers.{index}", f"layers.{index}"
        projections = [f"{source}.self_attn.{kind}_proj" for kind in "qkv"]
        return LayerWeights(
            input_norm=self._vectors(f"{name}.input_norm", f"{source}.input_layernorm.weight"),
            qkv=self._matrix(
                Role.ATTENTION,
                f"{name}.qkv",
                error_propagation.qkv,
                *(f"{each}.weight" for each in projections),
            ),
            qkv_bias=self._vectors(f"{name}.qkv_bias", *(f"{each}.bias" for each in projections))
            if self._config.attention_bias
            else None,
            qk_norms=self._qk_norms(name, f"{source}.self_attn") if self._config.qk_norm else None,
            output=self._matrix(
                Role.ATTENTION,
                f"{name}.output",
                error_propagation.output,
                f"{source}.self_attn.o_proj.weight",
            ),
            post_norm=self._vectors(f"{name}.post_norm", f"{source}.post_attention_layernorm.weight"),
            gate=self._matrix(
                Role.EXPAND, f"{name}.gate", error_propagation.mlp, f"{source}.mlp.gate_proj.weight"
            ),
            up=self._matrix(Role.EXPAND, f"{name}.up", error_propagation.mlp, f"{source}.mlp.up_proj.weight"),
            down=self._matrix(
                Role.CONTRACT, f"{name}.down", error_propagation.down, f"{source}.mlp.down_proj.weight"
            ),
        )

    def _qk_norms(self, name: str, source: str) -> QueryKeyNorms:
        return QueryKeyNorms(
            query=self._vectors(f"{name}.{QUERY_NORM}", f"{source}.q_norm.weight"),
            key=self._vectors(f"{name}.{KEY_NORM}", f"{source}.k_norm.weight"),
        )

    def final_norm(self) -> Vectors:
        """Store the final norm, the one before the head."""
        return self._vectors("norm", FINAL_NORM)

    def head(
        self, embedding: tuple[Table, ...], error_propagation: Floats | None = None
    ) -> tuple[HeadTile, ...]:
        """Store the head in vocabulary tiles; a single model's tied head refers to the embedding's bytes."""
        if len(self._checkpoints) == 1:
            (checkpoint,) = self._checkpoints
            tied = checkpoint.config.tie_word_embeddings
            if self._options.signed_codes and self._options.bits is not None:
                # the embedding has other codes, and each tile is copied to the device by itself
                return self._head_tiles(error_propagation)
            stack = RowStack(checkpoint, (checkpoint.head_name,), self._advance)
            return tuple(_tiles(embedding[0] if tied else self._plain("head", stack, TABLE_BITS)))
        return self._head_tiles(error_propagation)

    def _head_tiles(self, error_propagation: Floats | None) -> tuple[HeadTile, ...]:
        vocabulary = self._config.vocab_size
        return tuple(self._head_tile(start, error_propagation) for start in range(0, vocabulary, TILE))

    def _head_tile(self, start: int, error_propagation: Floats | None) -> HeadTile:
        """Store one vocabulary tile, from token `start` on, as a separate matrix."""
        stop = min(start + TILE, self._config.vocab_size)
        stacks = [
            RowStack(each, (each.head_name,), _counted_once(each, self._advance), start, stop)
            for each in self._checkpoints
        ]
        return HeadTile(
            start, stop - start, self._stored(Role.HEAD, f"head.{start}", stacks, error_propagation)
        )

    def rotary(self) -> RotaryWeights:
        """Store the tables of the rotary position embedding, once if the models share them."""
        configs = [checkpoint.config for checkpoint in self._checkpoints]
        stored: dict[tuple[Rope, int], tuple[TensorRef, TensorRef]] = {}
        for config, name in zip(configs, self._names, strict=True):
            key = (config.rope, config.max_position_embeddings)
            if key not in stored:
                cos, sin = rotary_tables(config)
                stored[key] = (
                    self._in_fp32(f"rotary.cos{name}", cos),
                    self._in_fp32(f"rotary.sin{name}", sin),
                )
        tables = [stored[config.rope, config.max_position_embeddings] for config in configs]
        return RotaryWeights(tuple(cos for cos, _ in tables), tuple(sin for _, sin in tables))

    def _vectors(self, name: str, *sources: str) -> Vectors:
        """Store concatenated norms or biases in the compute type, one tensor per model."""
        return tuple(
            self._vector(f"{name}{member}", np.concatenate([each.rows(source) for source in sources]))
            for each, member in zip(self._checkpoints, self._names, strict=True)
        )

    def _in_fp32(self, name: str, values: NDArray[np.floating]) -> TensorRef:
        """Store a table in fp32, from which a 16-bit graph's is rounded when it is loaded."""
        return self._file.append(name, ir.DataType.FLOAT, values.shape, (values.astype(np.float32),))

    def _vector(self, name: str, values: NDArray[np.floating]) -> TensorRef:
        dtype = self._options.compute
        return self._file.append(name, dtype, values.shape, (converted(values, dtype, name) for _ in (1,)))

    def _matrix(self, role: Role, name: str, error_propagation: Floats | None, *sources: str) -> Matrix:
        stacks = [RowStack(checkpoint, sources, self._advance) for checkpoint in self._checkpoints]
        return self._stored(role, name, stacks, error_propagation)

    def _stored(
        self, role: Role, name: str, stacks: list[RowStack], error_propagation: Floats | None
    ) -> Matrix:
        if len(stacks) == 1:
            bits = self._options.bits
            if self._options.signed_codes and bits is not None:
                return self._signed(name, stacks[0], max(bits, TABLE_BITS) if role is Role.HEAD else bits)
            return self._plain(name, stacks[0])
        reference, policy = stacks
        if self._options.lossless:
            return store_lossless(self._file, name, reference, policy, self._options.storage)
        blocks = zip(reference.blocks(), policy.blocks(), strict=True)
        coded = CodedBlocks(reference.rows, reference.columns, blocks, error_propagation)
        return store_coded(self._file, name, coded, self._options, role)

    def _plain(self, name: str, stack: RowStack, at_least: int = 0) -> Table:
        """Store a matrix in the storage type, or quantized to max(options.bits, at_least) bits."""
        bits = self._options.bits
        if bits is None:
            return self._floats(name, stack, self._options.storage)
        codes, scales, per_row = self._rounded(name, stack, max(bits, at_least))
        size = self._options.block_size
        shape = (stack.rows, per_row, size * max(bits, at_least) // 8)
        return BlockMatrix(
            codes=self._file.append(f"{name}.codes", ir.DataType.UINT8, shape, codes),
            scales=self._scales(name, stack, scales, per_row),
            bits=max(bits, at_least),
            block_size=size,
            columns=stack.columns,
        )

    def _signed(self, name: str, stack: RowStack, bits: int) -> SignedMatrix:
        """Store a matrix quantized to these bits as a decoder reads it."""
        codes, scales, per_row = self._rounded(name, stack, bits)
        size, dtype = self._options.block_size, SIGNED_TYPES[bits]
        shape = (stack.rows, per_row * size)
        viewed = (signed(block, bits).view(numpy_dtype(dtype)) for block in codes)
        return SignedMatrix(
            codes=self._file.append(f"{name}.codes", dtype, shape, viewed),
            scales=self._scales(name, stack, scales, per_row),
            block_size=size,
            columns=stack.columns,
        )

    def _rounded(
        self, name: str, stack: RowStack, bits: int
    ) -> tuple[Iterator[NDArray[np.uint8]], list[NDArray[np.floating]], int]:
        """Return the codes of a matrix, its scales, complete once the codes are, and the blocks of a row."""
        size, scale_type = self._options.block_size, self._options.compute
        scales: list[NDArray[np.floating]] = []

        def rounded(block: Floats) -> Quantized:
            quantized = quantize(block, bits, size, numpy_dtype(scale_type))
            _refuse_overflow(quantized.scales, block, name)
            return quantized

        def codes() -> Iterator[NDArray[np.uint8]]:
            for quantized in in_order(rounded, stack.blocks()):
                scales.append(quantized.scales)
                yield quantized.codes

        return codes(), scales, -(-stack.columns // size)

    def _scales(
        self, name: str, stack: RowStack, scales: list[NDArray[np.floating]], per_row: int
    ) -> TensorRef:
        return self._file.append(f"{name}.scales", self._options.compute, (stack.rows, per_row), scales)

    def _floats(self, name: str, stack: RowStack, dtype: ir.DataType) -> FloatMatrix:
        blocks = (converted(block, dtype, name) for block in stack.blocks())
        return FloatMatrix(self._file.append(name, dtype, (stack.rows, stack.columns), blocks))


def _tiles(head: Table) -> Iterable[HeadTile]:
    """Cut a head [V, H] into matrices of at most TILE rows; they refer to the same bytes."""
    rows = (head.values if isinstance(head, FloatMatrix) else head.codes).shape[0]
    for start in range(0, rows, TILE):
        stop = min(start + TILE, rows)
        yield HeadTile(start, stop - start, head if stop - start == rows else head.part(start, stop))


def _counted_once(checkpoint: WeightSource, advance: Advance) -> Advance:
    """Return a callback that ignores a tied head, which was counted with the embedding."""
    return (lambda _count: None) if checkpoint.config.tie_word_embeddings else advance


def _stored_dtype(checkpoint: WeightSource) -> ir.DataType:
    return onnx_dtype(checkpoint.dtype(EMBEDDING))


def converted(values: NDArray[np.floating], dtype: ir.DataType, name: str) -> NDArray[np.floating]:
    """Return the values in another type; raises CheckpointCorrupt if a value overflows fp16."""
    with np.errstate(over="ignore"):
        stored = values.astype(numpy_dtype(dtype))
    _refuse_overflow(stored, values, name)
    return stored


def _refuse_overflow(stored: NDArray[np.floating], values: NDArray[np.floating], name: str) -> None:
    if stored.dtype == np.float16 and not np.isfinite(stored).all():
        raise CheckpointCorrupt(
            f"{name} holds {float(np.abs(values).max()):.3g}, which overflows fp16",
            hint="export with --precision bf16, or for the CPU",
        )
