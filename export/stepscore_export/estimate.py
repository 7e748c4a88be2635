"""What an export will need, from the checkpoint's header alone: `stepscore export --dry-run`."""

from __future__ import annotations

from dataclasses import dataclass

from stepscore.choices import Precision
from stepscore_export.checkpoint import Checkpoint
from stepscore_export.config import Qwen2Config
from stepscore_export.graph import TILE
from stepscore_export.model import BLOCK_ELEMENTS, TABLE_BITS
from stepscore_export.options import ExportOptions
from stepscore_export.weights import ALIGNMENT, numpy_dtype

# Parameters of both models a second, self-test included, on two cores: benchmarks/results/memory_export.json.
PARAMETERS_PER_SECOND = {
    Precision.FP32: 34e6,
    Precision.FP16: 34e6,
    Precision.BF16: 34e6,
    Precision.INT8: 25e6,
    Precision.INT4: 25e6,
}
BASE_BYTES = 150 << 20  # Python, numpy, ONNX Runtime
CONVERTED_COPIES = 10  # of a row block: as read, as float32, scaled, rounded, packed


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
    """Return the expected peak, which is that of the self-test.

    It opens one layer, or the head, at a time: the weights as stored (mapped pages count) and one matrix or
    tile of the head in fp32. The allocator still keeps what the conversion of row blocks needed.
    """
    converting = CONVERTED_COPIES * 4 * BLOCK_ELEMENTS
    stored = max(sum(_layer_bytes(config, options)), sum(_table_bytes(config, options)))
    widest = max(config.intermediate_size, min(TILE, config.vocab_size)) * config.hidden_size
    return BASE_BYTES + converting + stored + 4 * widest


def _tensor_bytes(config: Qwen2Config, options: ExportOptions) -> list[int]:
    """Return the sizes of the tensors in the order in which store_model appends them."""
    compute = numpy_dtype(options.compute).itemsize
    table = _table_bytes(config, options)
    rotary = config.max_position_embeddings * (config.head_dim // 2) * compute
    return [
        *table,
        *_layer_bytes(config, options) * config.num_hidden_layers,
        config.hidden_size * compute,
        *([] if config.tie_word_embeddings else table),
        rotary,
        rotary,
    ]


def _table_bytes(config: Qwen2Config, options: ExportOptions) -> list[int]:
    return _matrix_bytes(config.vocab_size, config.hidden_size, options, TABLE_BITS)


def _layer_bytes(config: Qwen2Config, options: ExportOptions) -> list[int]:
    compute = numpy_dtype(options.compute).itemsize
    hidden, intermediate = config.hidden_size, config.intermediate_size
    queries = config.num_attention_heads * config.head_dim
    qkv = queries + 2 * config.num_key_value_heads * config.head_dim
    return [
        hidden * compute,
        *_matrix_bytes(qkv, hidden, options),
        qkv * compute,
        *_matrix_bytes(hidden, queries, options),
        hidden * compute,
        *_matrix_bytes(intermediate, hidden, options) * 2,
        *_matrix_bytes(hidden, intermediate, options),
    ]


def _matrix_bytes(rows: int, columns: int, options: ExportOptions, at_least: int = 0) -> list[int]:
    if options.bits is None:
        return [rows * columns * numpy_dtype(options.storage).itemsize]
    blocks = -(-columns // options.block_size)
    codes = rows * blocks * options.block_size * max(options.bits, at_least) // 8
    return [codes, rows * blocks * numpy_dtype(options.compute).itemsize]
