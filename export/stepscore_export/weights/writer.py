"""Checkpoints -> one weight file: every tensor read, converted and appended in row blocks.

A unit of one checkpoint is stored as it is, rounded to floats or quantised; a unit of two, reference and
policy, has matrices that are coded together (coded.py) and norms, biases and embeddings of both.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from stepscore.artifact.graph_contract import TILE
from stepscore.errors import CheckpointCorrupt
from stepscore_export.checkpoint.checkpoint import Checkpoint, Members
from stepscore_export.families.base import EMBEDDING, DecoderConfig
from stepscore_export.options import ExportOptions
from stepscore_export.quantization.error_propagation import LayerErrorPropagation, NoStatistics, Statistics
from stepscore_export.quantization.rounding import Floats, Quantized, quantize
from stepscore_export.weights.difference import CodedBlocks, Role, store_coded
from stepscore_export.weights.layout import (
    BlockMatrix,
    FloatMatrix,
    HeadTile,
    LayerWeights,
    Matrix,
    RotaryWeights,
    Table,
    UnitWeights,
    Vectors,
)
from stepscore_export.weights.row_blocks import Advance, RowStack, in_order
from stepscore_export.weights.weight_file import TensorRef, TensorSink, numpy_dtype, onnx_dtype

TABLE_BITS = 8  # embedding and head: at 4 bits the head alone costs half the fidelity of the base


def store_unit(
    members: Members,
    file: TensorSink,
    options: ExportOptions,
    advance: Advance,
    statistics: Statistics | None = None,
) -> UnitWeights:
    """Append the whole unit to `file` and return where everything is."""
    statistics = statistics or NoStatistics()
    writer = UnitWriter(members, file, options, advance)
    embedding = writer.embedding()
    layers = tuple(writer.layer(index, statistics.layer(index)) for index in range(writer.num_layers))
    norm = writer.final_norm()
    head = writer.head(embedding, statistics.head())
    return UnitWeights(embedding, layers, norm, head, writer.rotary())


def rotary_tables(config: DecoderConfig) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return cos and sin of position * theta^(-2i / head_dim), each [positions, head_dim / 2]."""
    frequencies = config.rope_theta ** (-np.arange(0, config.head_dim, 2) / config.head_dim)
    angles = np.arange(config.max_position_embeddings)[:, None] * frequencies
    return np.cos(angles), np.sin(angles)


class UnitWriter:
    """Reads from the checkpoints of one unit, writes to one weight file."""

    def __init__(self, members: Members, file: TensorSink, options: ExportOptions, advance: Advance) -> None:
        self._checkpoints = tuple(members.values())
        self._names = [f".{name}" for name in members] if len(members) > 1 else [""]
        self._file = file
        self._options = options
        self._advance = advance

    @property
    def num_layers(self) -> int:
        """Number of decoder layers."""
        return self._checkpoints[0].config.num_hidden_layers

    def embedding(self) -> tuple[Table, ...]:
        """Store the embedding: as the checkpoints have it where the difference of two is what matters.

        Only rows that are looked up are ever read, so its precision costs disk and nothing else.
        """
        if len(self._checkpoints) == 1:
            stack = RowStack(self._checkpoints[0], (EMBEDDING,), self._advance)
            return (self._plain("embed", stack, TABLE_BITS),)
        return tuple(
            self._floats(f"embed{name}", RowStack(each, (EMBEDDING,), self._advance), _stored_dtype(each))
            for each, name in zip(self._checkpoints, self._names, strict=True)
        )

    def layer(self, index: int, spread: LayerErrorPropagation | None = None) -> LayerWeights:
        """Store one decoder layer; errors of its base are carried over where `spread` says how."""
        spread = spread or LayerErrorPropagation()
        source, name = f"model.layers.{index}", f"layers.{index}"
        projections = [f"{source}.self_attn.{kind}_proj" for kind in "qkv"]
        return LayerWeights(
            input_norm=self._vectors(f"{name}.input_norm", f"{source}.input_layernorm.weight"),
            qkv=self._matrix(
                Role.ATTENTION, f"{name}.qkv", spread.qkv, *(f"{each}.weight" for each in projections)
            ),
            qkv_bias=self._vectors(f"{name}.qkv_bias", *(f"{each}.bias" for each in projections)),
            output=self._matrix(
                Role.ATTENTION, f"{name}.output", spread.output, f"{source}.self_attn.o_proj.weight"
            ),
            post_norm=self._vectors(f"{name}.post_norm", f"{source}.post_attention_layernorm.weight"),
            gate=self._matrix(Role.EXPAND, f"{name}.gate", spread.mlp, f"{source}.mlp.gate_proj.weight"),
            up=self._matrix(Role.EXPAND, f"{name}.up", spread.mlp, f"{source}.mlp.up_proj.weight"),
            down=self._matrix(Role.CONTRACT, f"{name}.down", spread.down, f"{source}.mlp.down_proj.weight"),
        )

    def final_norm(self) -> Vectors:
        """Store the norm before the head."""
        return self._vectors("norm", "model.norm.weight")

    def head(self, embedding: tuple[Table, ...], spread: Floats | None = None) -> tuple[HeadTile, ...]:
        """Store the head in tiles of the vocabulary; a tied head of one model names the embedding's bytes."""
        if len(self._checkpoints) == 1:
            (checkpoint,) = self._checkpoints
            tied = checkpoint.config.tie_word_embeddings
            stack = RowStack(checkpoint, (checkpoint.head_name,), self._advance)
            return tuple(_tiles(embedding[0] if tied else self._plain("head", stack, TABLE_BITS)))
        vocabulary = self._checkpoints[0].config.vocab_size
        return tuple(self._head_tile(start, spread) for start in range(0, vocabulary, TILE))

    def _head_tile(self, start: int, spread: Floats | None) -> HeadTile:
        """Store the columns of the vocabulary from `start` on as a matrix of its own."""
        stop = min(start + TILE, self._checkpoints[0].config.vocab_size)
        stacks = [
            RowStack(each, (each.head_name,), _counted_once(each, self._advance), start, stop)
            for each in self._checkpoints
        ]
        return HeadTile(start, stop - start, self._stored(Role.HEAD, f"head.{start}", stacks, spread))

    def rotary(self) -> RotaryWeights:
        """Store the tables of the position embedding, once where the models share them."""
        configs = [checkpoint.config for checkpoint in self._checkpoints]
        stored: dict[tuple[float, int], tuple[TensorRef, TensorRef]] = {}
        for config, name in zip(configs, self._names, strict=True):
            key = (config.rope_theta, config.max_position_embeddings)
            if key not in stored:
                cos, sin = rotary_tables(config)
                stored[key] = self._vector(f"rotary.cos{name}", cos), self._vector(f"rotary.sin{name}", sin)
        tables = [stored[config.rope_theta, config.max_position_embeddings] for config in configs]
        return RotaryWeights(tuple(cos for cos, _ in tables), tuple(sin for _, sin in tables))

    def _vectors(self, name: str, *sources: str) -> Vectors:
        """Store norms and biases, joined, in the type the graph computes in."""
        return tuple(
            self._vector(f"{name}{member}", np.concatenate([each.rows(source) for source in sources]))
            for each, member in zip(self._checkpoints, self._names, strict=True)
        )

    def _vector(self, name: str, values: NDArray[np.floating]) -> TensorRef:
        dtype = self._options.compute
        return self._file.append(name, dtype, values.shape, (converted(values, dtype, name) for _ in (1,)))

    def _matrix(self, role: Role, name: str, spread: Floats | None, *sources: str) -> Matrix:
        stacks = [RowStack(checkpoint, sources, self._advance) for checkpoint in self._checkpoints]
        return self._stored(role, name, stacks, spread)

    def _stored(self, role: Role, name: str, stacks: list[RowStack], spread: Floats | None) -> Matrix:
        if len(stacks) == 1:
            return self._plain(name, stacks[0])
        reference, policy = stacks
        blocks = zip(reference.blocks(), policy.blocks(), strict=True)
        coded = CodedBlocks(reference.rows, reference.columns, blocks, spread)
        return store_coded(self._file, name, coded, self._options, role)

    def _plain(self, name: str, stack: RowStack, at_least: int = 0) -> Table:
        """Store a matrix as floats, or quantised to the options' bits (or `at_least`)."""
        bits = self._options.bits
        if bits is None:
            return self._floats(name, stack, self._options.storage)
        size, scale_type = self._options.block_size, self._options.compute
        bits = max(bits, at_least)
        per_row = -(-stack.columns // size)
        scales: list[NDArray[np.floating]] = []

        def rounded(block: Floats) -> Quantized:
            quantized = quantize(block, bits, size, numpy_dtype(scale_type))
            _refuse_overflow(quantized.scales, block, name)
            return quantized

        def codes() -> Iterator[NDArray[np.uint8]]:
            for quantized in in_order(rounded, stack.blocks()):
                scales.append(quantized.scales)
                yield quantized.codes

        shape = (stack.rows, per_row, size * bits // 8)
        return BlockMatrix(
            codes=self._file.append(f"{name}.codes", ir.DataType.UINT8, shape, codes()),
            scales=self._file.append(f"{name}.scales", scale_type, (stack.rows, per_row), scales),
            bits=bits,
            block_size=size,
            columns=stack.columns,
        )

    def _floats(self, name: str, stack: RowStack, dtype: ir.DataType) -> FloatMatrix:
        blocks = (converted(block, dtype, name) for block in stack.blocks())
        return FloatMatrix(self._file.append(name, dtype, (stack.rows, stack.columns), blocks))


def _tiles(head: Table) -> Iterable[HeadTile]:
    """Cut a head [V, H] into matrices of at most TILE rows; they name parts of the same bytes."""
    rows = (head.values if isinstance(head, FloatMatrix) else head.codes).shape[0]
    for start in range(0, rows, TILE):
        stop = min(start + TILE, rows)
        yield HeadTile(start, stop - start, head if stop - start == rows else head.part(start, stop))


def _counted_once(checkpoint: Checkpoint, advance: Advance) -> Advance:
    """A tied head was counted as the embedding."""
    return (lambda _count: None) if checkpoint.config.tie_word_embeddings else advance


def _stored_dtype(checkpoint: Checkpoint) -> ir.DataType:
    return onnx_dtype(checkpoint.dtype(EMBEDDING))


def converted(values: NDArray[np.floating], dtype: ir.DataType, name: str) -> NDArray[np.floating]:
    """Return the values in another type; CheckpointCorrupt where fp16 cannot hold one."""
    with np.errstate(over="ignore"):
        stored = values.astype(numpy_dtype(dtype))
    _refuse_overflow(stored, values, name)
    return stored


def _refuse_overflow(stored: NDArray[np.floating], values: NDArray[np.floating], name: str) -> None:
    if stored.dtype == np.float16 and not np.isfinite(stored).all():
        raise CheckpointCorrupt(
            f"{name} holds {float(np.abs(values).max()):.3g}, which fp16 cannot hold",
            hint="export with --precision bf16, or for the CPU",
        )
