"""What an export will need, from the checkpoint's header alone: `stepscore export --dry-run`."""

from __future__ import annotations

import math

from stepscore.artifact.graph_contract import TILE, piece_rows
from stepscore.batching.planner import MAX_PADDING
from stepscore.enums import Coding, Exporter, Precision
from stepscore.memory.settings import HEAD_ROWS
from stepscore_export.backends.base import ExportEstimate
from stepscore_export.backends.onnx import Weights, unit_members
from stepscore_export.backends.optimum import TracedWeights, store_traced
from stepscore_export.checkpoint.checkpoint import Members
from stepscore_export.families.base import DecoderConfig
from stepscore_export.options import ExportOptions
from stepscore_export.reference.layerwise_fp32 import BATCH_ROWS
from stepscore_export.validation.measure import BATCH_TOKENS
from stepscore_export.weights.layout import head_parts, tensors
from stepscore_export.weights.weight_file import SizeOnly
from stepscore_export.weights.writer import store_unit

# Parameters of both models a second, self-test included, on two cores (benchmarks/results: memory_export.json
# and full_size.json); machines and disks make a factor of two.
PARAMETERS_PER_SECOND = {
    Precision.FP32: 34e6,
    Precision.FP16: 34e6,
    Precision.BF16: 34e6,
    Precision.INT8: 18e6,
    Precision.INT4: 18e6,
}
BASE_BYTES = 360 << 20  # Python, numpy, ONNX Runtime, a tokenizer, row blocks while they are converted
TORCH_BYTES = 260 << 20  # PyTorch, transformers and optimum beside them
TRACED_ARRAYS = 4  # of [positions, intermediate_size], and of [rows of a chunk, TILE]
ARRAYS = 9  # of [rows, intermediate_size] that are alive in a layer


def estimate(checkpoints: Members, options: ExportOptions) -> ExportEstimate:
    """Predict weight files to the byte, memory and time roughly; the options must be settled."""
    parameters = sum(model.parameters() for model in checkpoints.values())
    units = {
        folder: _laid_out(members, options) for folder, members in unit_members(checkpoints, options).items()
    }
    return ExportEstimate(
        parameters=parameters,
        source_bytes=sum(model.num_bytes() for model in checkpoints.values()),
        weight_bytes={folder: num_bytes for folder, (num_bytes, _) in units.items()},
        memory_bytes=max(_memory_bytes(weights, checkpoints, options) for _, weights in units.values()),
        seconds=parameters / PARAMETERS_PER_SECOND[options.precision],
    )


def _laid_out(members: Members, options: ExportOptions) -> tuple[int, Weights]:
    """Run the export without its data: nothing is read but headers."""
    sink = SizeOnly()
    store = store_traced if options.exporter is Exporter.OPTIMUM else store_unit
    weights = store(members, sink, options, lambda _count: None)
    return sink.num_bytes, weights


def _memory_bytes(weights: Weights, checkpoints: Members, options: ExportOptions) -> int:
    """Return the expected peak, which is that of running what was written, or the checkpoints.

    One layer or part of the head is open at a time: its weights as stored (mapped pages count), what of a
    matrix is float32 at a time, and arrays of [rows, intermediate_size].
    """
    config = checkpoints["policy"].config
    if isinstance(weights, TracedWeights):
        return _traced_bytes(weights, config)
    stored = max(_num_bytes(part) for part in (*weights.layers, *head_parts(weights.head).values()))
    widest = max(config.intermediate_size, min(TILE, config.vocab_size)) * config.hidden_size
    piece = piece_rows(config.intermediate_size) * config.intermediate_size
    merged = options.coding is Coding.DIFFERENCE and options.merged
    copied = 4 * min(widest, piece) if merged else widest
    return BASE_BYTES + stored + 4 * (copied + ARRAYS * BATCH_ROWS * config.intermediate_size)


def _traced_bytes(weights: TracedWeights, config: DecoderConfig) -> int:
    """Return the peak of running one whole model that was traced: it has no layers to run one by one.

    Its weights in fp32, one matrix twice while they are packed, a batch of the fidelity's texts as padded
    positions, and a chunk of the head; nothing of the trace itself is as large.
    """
    parts = (weights.layers, weights.head)
    parameters = sum(math.prod(tensor.shape) for part in parts for tensor in tensors(part))
    matrix = config.intermediate_size * config.hidden_size
    batch = TRACED_ARRAYS * MAX_PADDING * BATCH_TOKENS * config.intermediate_size
    logits = TRACED_ARRAYS * HEAD_ROWS * min(TILE, config.vocab_size)
    return BASE_BYTES + TORCH_BYTES + 4 * (parameters + matrix + batch + logits)


def _num_bytes(part: object) -> int:
    return sum(tensor.num_bytes for tensor in tensors(part))
