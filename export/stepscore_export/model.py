"""One checkpoint -> one weight file: every tensor read, converted and appended in row blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from stepscore.errors import CheckpointCorrupt
from stepscore_export.checkpoint import Checkpoint
from stepscore_export.config import Qwen2Config
from stepscore_export.layout import BlockMatrix, FloatMatrix, LayerWeights, Matrix, ModelWeights, Shape
from stepscore_export.options import ExportOptions
from stepscore_export.quantize import quantize
from stepscore_export.weights import TensorRef, WeightFile, numpy_dtype

BLOCK_ELEMENTS = 1 << 22  # 16 MB of float32: large enough for numpy, small enough for any machine
TABLE_BITS = 8  # embedding and head: at 4 bits the head alone costs half the fidelity of the base

Advance = Callable[[int], None]
"""Called with the number of source parameters that are done."""


def graph_shape(config: Qwen2Config, options: ExportOptions) -> Shape:
    """Return what the graphs need to know of the model."""
    return Shape(
        hidden_size=config.hidden_size,
        num_attention_heads=config.num_attention_heads,
        num_key_value_heads=config.num_key_value_heads,
        head_dim=config.head_dim,
        rms_norm_eps=config.rms_norm_eps,
        compute=options.compute,
        fused_silu=options.compute == ir.DataType.FLOAT,
    )


def store_model(
    checkpoint: Checkpoint, file: WeightFile, options: ExportOptions, advance: Advance
) -> ModelWeights:
    """Append a whole model to `file` and return where everything is."""
    writer = _Writer(checkpoint, file, options, advance)
    config = checkpoint.config
    tied = config.tie_word_embeddings
    embedding = writer.matrix("embed", ["model.embed_tokens.weight"], TABLE_BITS)
    layers = tuple(_store_layer(writer, index) for index in range(config.num_hidden_layers))
    norm = writer.vector("norm", ["model.norm.weight"])
    head = embedding if tied else writer.matrix("head", ["lm_head.weight"], TABLE_BITS)
    cos, sin = rotary_tables(config)
    return ModelWeights(
        embedding, layers, norm, head, writer.table("rotary.cos", cos), writer.table("rotary.sin", sin)
    )


def rotary_tables(config: Qwen2Config) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return cos and sin of position * theta^(-2i / head_dim), each [positions, head_dim / 2]."""
    frequencies = config.rope_theta ** (-np.arange(0, config.head_dim, 2) / config.head_dim)
    angles = np.arange(config.max_position_embeddings)[:, None] * frequencies
    return np.cos(angles), np.sin(angles)


def _store_layer(writer: _Writer, index: int) -> LayerWeights:
    source, name = f"model.layers.{index}", f"layers.{index}"
    projections = [f"{source}.self_attn.{kind}_proj" for kind in "qkv"]
    return LayerWeights(
        input_norm=writer.vector(f"{name}.input_norm", [f"{source}.input_layernorm.weight"]),
        qkv=writer.matrix(f"{name}.qkv", [f"{name}.weight" for name in projections]),
        qkv_bias=writer.vector(f"{name}.qkv_bias", [f"{name}.bias" for name in projections]),
        output=writer.matrix(f"{name}.output", [f"{source}.self_attn.o_proj.weight"]),
        post_norm=writer.vector(f"{name}.post_norm", [f"{source}.post_attention_layernorm.weight"]),
        gate=writer.matrix(f"{name}.gate", [f"{source}.mlp.gate_proj.weight"]),
        up=writer.matrix(f"{name}.up", [f"{source}.mlp.up_proj.weight"]),
        down=writer.matrix(f"{name}.down", [f"{source}.mlp.down_proj.weight"]),
    )


class _Writer:
    """Reads from one checkpoint, writes to one weight file."""

    def __init__(
        self, checkpoint: Checkpoint, file: WeightFile, options: ExportOptions, advance: Advance
    ) -> None:
        self._checkpoint = checkpoint
        self._file = file
        self._options = options
        self._advance = advance

    def vector(self, name: str, sources: Sequence[str]) -> TensorRef:
        """Store norms and biases, joined, in the type the graph computes in."""
        return self.table(name, np.concatenate([self._checkpoint.rows(source) for source in sources]))

    def table(self, name: str, values: NDArray[np.floating]) -> TensorRef:
        """Store a small array in the type the graph computes in."""
        dtype = self._options.compute
        return self._file.append(name, dtype, values.shape, [_convert(values, dtype, name)])

    def matrix(self, name: str, sources: Sequence[str], at_least: int = 0) -> Matrix:
        """Store matrices [N_i, K] below each other, quantised to the options' bits (or `at_least`)."""
        rows = sum(self._checkpoint.shape(source)[0] for source in sources)
        columns = self._checkpoint.shape(sources[0])[1]
        bits = self._options.bits
        if bits is None:
            dtype = self._options.storage
            blocks = (_convert(block, dtype, name) for block in self._blocks(sources))
            return FloatMatrix(self._file.append(name, dtype, (rows, columns), blocks))
        return self._block_matrix(name, sources, rows, columns, max(bits, at_least))

    def _block_matrix(
        self, name: str, sources: Sequence[str], rows: int, columns: int, bits: int
    ) -> BlockMatrix:
        size, scale_type = self._options.block_size, self._options.compute
        per_row = -(-columns // size)
        scales: list[NDArray[np.floating]] = []

        def codes() -> Iterator[NDArray[np.uint8]]:
            for block in self._blocks(sources):
                quantized = quantize(block, bits, size, numpy_dtype(scale_type))
                _refuse_overflow(quantized.scales, block, name)
                scales.append(quantized.scales)
                yield quantized.codes

        stored = self._file.append(
            f"{name}.codes", ir.DataType.UINT8, (rows, per_row, size * bits // 8), codes()
        )
        return BlockMatrix(
            codes=stored,
            scales=self._file.append(f"{name}.scales", scale_type, (rows, per_row), scales),
            bits=bits,
            block_size=size,
            columns=columns,
        )

    def _blocks(self, sources: Sequence[str]) -> Iterator[NDArray[np.float32]]:
        for source in sources:
            rows, columns = self._checkpoint.shape(source)
            step = max(1, BLOCK_ELEMENTS // columns)
            for start in range(0, rows, step):
                block = self._checkpoint.rows(source, start, min(start + step, rows))
                yield block
                self._advance(block.size)


def _convert(values: NDArray[np.floating], dtype: ir.DataType, name: str) -> NDArray[np.floating]:
    with np.errstate(over="ignore"):
        converted = values.astype(numpy_dtype(dtype))
    _refuse_overflow(converted, values, name)
    return converted


def _refuse_overflow(stored: NDArray[np.floating], values: NDArray[np.floating], name: str) -> None:
    if stored.dtype == np.float16 and not np.isfinite(stored).all():
        raise CheckpointCorrupt(
            f"{name} holds {float(np.abs(values).max()):.3g}, which fp16 cannot hold",
            hint="export with --precision bf16, or for the CPU",
        )
