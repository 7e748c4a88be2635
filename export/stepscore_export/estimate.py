"""What an export will need, from the checkpoint's header alone: `stepscore export --dry-run`."""

from __future__ import annotations

import math
from dataclasses import dataclass

from stepscore.choices import Precision
from stepscore_export.checkpoint import Checkpoint
from stepscore_export.config import Qwen2Config, tensor_shapes
from stepscore_export.model import BLOCK_ELEMENTS, TABLE_BITS
from stepscore_export.options import ExportOptions
from stepscore_export.weights import ALIGNMENT, numpy_dtype

# Million parameters a second and core-bound megabytes, measured by benchmarks/export_memory.py.
PARAMETERS_PER_SECOND = {
    Precision.FP32: 130e6,
    Precision.FP16: 130e6,
    Precision.BF16: 130e6,
    Precision.INT8: 60e6,
    Precision.INT4: 60e6,
}
BASE_BYTES = 150 << 20  # Python, numpy, ONNX Runtime


@dataclass(frozen=True, slots=True)
class Estimate:
    """Sizes in bytes, time in seconds."""

    parameters: int
    source_bytes: int
    weight_bytes: tuple[int, int]
    memory_bytes: int
    seconds: float

    @property
    def disk_bytes(self) -> int:
        """Space that must be free where the pair goes; graphs and tokenizer are a few MB."""
        return sum(self.weight_bytes)


def estimate(policy: Checkpoint, reference: Checkpoint, options: ExportOptions) -> Estimate:
    """Predict weight files to the byte, memory and time roughly."""
    models = (policy, reference)
    parameters = sum(model.parameters() for model in models)
    policy_bytes, reference_bytes = (weight_file_bytes(model.config, options) for model in models)
    return Estimate(
        parameters=parameters,
        source_bytes=sum(model.num_bytes() for model in models),
        weight_bytes=(policy_bytes, reference_bytes),
        memory_bytes=max(memory_bytes(model.config, options) for model in models),
        seconds=parameters / PARAMETERS_PER_SECOND[options.precision],
    )


def weight_file_bytes(config: Qwen2Config, options: ExportOptions) -> int:
    """Return the exact size of weights.bin: every tensor starts at a multiple of ALIGNMENT."""
    end = 0
    for size in _tensor_bytes(config, options):
        end = -(-end // ALIGNMENT) * ALIGNMENT + size
    return end


def memory_bytes(config: Qwen2Config, options: ExportOptions) -> int:
    """Return the expected peak: the blocks being converted, then the self-test's largest graph.

    The self-test opens one layer, or the head, at a time: its weights as stored and a copy that ONNX
    Runtime lays out for its kernels (fp32 where weights are floats).
    """
    converting = 10 * 4 * BLOCK_ELEMENTS
    layer = sum(
        math.prod(shape)
        for name, shape in tensor_shapes(config).items()
        if name.startswith("model.layers.0.")
    )
    table = config.vocab_size * config.hidden_size
    return BASE_BYTES + max(converting, *(_opened(count, options) for count in (layer, table)))


def _opened(parameters: int, options: ExportOptions) -> int:
    if options.bits is None:
        return parameters * (numpy_dtype(options.storage).itemsize + 4)
    return 2 * parameters * TABLE_BITS // 8


def _tensor_bytes(config: Qwen2Config, options: ExportOptions) -> list[int]:
    """Return the sizes of the tensors in the order in which store_model appends them."""
    shapes = tensor_shapes(config)
    compute = numpy_dtype(options.compute).itemsize
    hidden, heads = config.hidden_size, config.num_attention_heads + 2 * config.num_key_value_heads

    def matrix(rows: int, columns: int, at_least: int = 0) -> list[int]:
        if options.bits is None:
            return [rows * columns * numpy_dtype(options.storage).itemsize]
        bits = max(options.bits, at_least)
        blocks = -(-columns // options.block_size)
        return [rows * blocks * options.block_size * bits // 8, rows * blocks * compute]

    table = matrix(config.vocab_size, hidden, TABLE_BITS)
    layer = [
        hidden * compute,
        *matrix(heads * config.head_dim, hidden),
        heads * config.head_dim * compute,
        *matrix(*shapes["model.layers.0.self_attn.o_proj.weight"]),
        hidden * compute,
        *matrix(*shapes["model.layers.0.mlp.gate_proj.weight"]),
        *matrix(*shapes["model.layers.0.mlp.up_proj.weight"]),
        *matrix(*shapes["model.layers.0.mlp.down_proj.weight"]),
    ]
    rotary = config.max_position_embeddings * (config.head_dim // 2) * compute
    head = [] if config.tie_word_embeddings else table
    return [*table, *layer * config.num_hidden_layers, hidden * compute, *head, rotary, rotary]
