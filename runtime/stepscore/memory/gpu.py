"""Estimate of the memory of a pair for CUDA: what its engine allocates, and what ONNX Runtime does besides.

Weights, scratch and hidden states are allocated to the byte, so that arithmetic gives them. The context and
the activations of a batch are constants that no GPU has confirmed for this engine yet.
"""

from __future__ import annotations

from stepscore.artifact.graph_contract import HEAD_PART_COLUMNS, TILE, head_files, layer_file
from stepscore.artifact.manifest import TOKENIZER, Manifest
from stepscore.enums import DifferencePrecision, Precision, Residency
from stepscore.memory.forms import KEPT_BYTES, PROCESS_BYTES, TOKENIZER_BYTES, attention_elements
from stepscore.memory.peak import MemoryEstimate, PeakLoad
from stepscore.memory.settings import Settings

GPU_BYTES = 1_200_000_000
"""CUDA context and the handles of six sessions; 1.7 GB were measured with a session for each layer."""
ARRAYS = 5
"""Of a layer: arrays [tokens, intermediate_size] that are alive at once."""
LOGITS = 4
"""Of the head: fp32 arrays [tokens of a chunk, TILE]."""
RING = 2
"""Buffers for stages that are streamed."""


def stage_sizes(manifest: Manifest) -> list[int]:
    """Return the stored bytes of every stage, in the order in which they run."""
    shape = manifest.architecture
    layers = [layer_file(index) for index in range(shape.num_hidden_layers)]
    names = layers + head_files(shape.vocab_size)
    return [unit.extents[name].size for unit in manifest.units for name in names]


def evenly_spread(num_kept: int, num_stages: int) -> frozenset[int]:
    """Return which stages stay on the device, so that those that are copied never queue.

    >>> sorted(evenly_spread(2, 6)), sorted(evenly_spread(0, 3)), sorted(evenly_spread(3, 3))
    ([1, 4], [], [0, 1, 2])
    """
    return frozenset((2 * index + 1) * num_stages // (2 * num_kept) for index in range(num_kept))


def stages_kept(manifest: Manifest, settings: Settings) -> int:
    """Return how many stages stay on the device."""
    if settings.residency is Residency.STREAM:
        return 0
    return settings.resident_stages if settings.residency is Residency.PARTIAL else len(stage_sizes(manifest))


def weight_bytes(manifest: Manifest, settings: Settings) -> int:
    """Return the bytes of stages that stay and of the ring for the others."""
    sizes = stage_sizes(manifest)
    kept = evenly_spread(stages_kept(manifest, settings), len(sizes))
    streamed = [size for index, size in enumerate(sizes) if index not in kept]
    ring = min(RING, len(streamed)) * max(streamed, default=0)
    return sum(sizes[index] for index in kept) + ring


def streamed_bytes(manifest: Manifest, settings: Settings) -> int:
    """Return the bytes that are copied for every window."""
    sizes = stage_sizes(manifest)
    kept = evenly_spread(stages_kept(manifest, settings), len(sizes))
    return sum(size for index, size in enumerate(sizes) if index not in kept)


def decoded_elements(manifest: Manifest) -> int:
    """Return the elements of the largest stage of one model."""
    shape = manifest.architecture
    heads = shape.num_attention_heads * shape.head_dim
    projected = heads + 2 * shape.num_key_value_heads * shape.head_dim
    layer = shape.hidden_size * (projected + heads + 3 * shape.intermediate_size)
    return max(layer, min(HEAD_PART_COLUMNS, shape.vocab_size) * shape.hidden_size)


def scratch_bytes(manifest: Manifest, settings: Settings) -> int:
    """Return the bytes of decoded weights; an upper bound where a lossless pair has plain matrices."""
    if settings.on_gpu and not is_decoded(manifest):
        return 0
    return decoded_elements(manifest) * settings.element_bytes


def is_decoded(manifest: Manifest) -> bool:
    """Return whether weights are stored in another form than that in which a GPU computes."""
    return manifest.difference is not None or manifest.precision in {Precision.INT8, Precision.INT4}


def is_lossless(manifest: Manifest) -> bool:
    """Return whether the policy is stored as a lossless difference."""
    difference = manifest.difference
    return difference is not None and difference.precision is DifferencePrecision.LOSSLESS


def estimate_generic(manifest: Manifest, settings: Settings, load: PeakLoad) -> MemoryEstimate:
    """Return the peak of the GPU, or of the process where the CPU stands for it."""
    shape, element = manifest.architecture, settings.element_bytes
    in_layer = ARRAYS * load.rows * shape.intermediate_size * element
    in_attention = round(attention_elements(shape, load) * element)
    scores = 0 if settings.on_gpu else 4 * load.scores * shape.num_attention_heads
    logits = LOGITS * 4 * min(settings.head_rows, load.rows) * min(TILE, shape.vocab_size)
    models = max(len(unit.models) for unit in manifest.units)
    window = models * (load.window_rows + load.window_scored) * shape.hidden_size * element
    weights = weight_bytes(manifest, settings) + scratch_bytes(manifest, settings)
    if is_lossless(manifest) and not settings.on_gpu:
        weights += 2 * decoded_elements(manifest)  # 16-bit patterns before they are widened
    return MemoryEstimate(
        _process(manifest, settings), weights, max(in_layer, in_attention, scores, logits), window
    )


def _process(manifest: Manifest, settings: Settings) -> int:
    if settings.on_gpu:
        return GPU_BYTES
    return round(PROCESS_BYTES + KEPT_BYTES + TOKENIZER_BYTES * manifest.files[TOKENIZER].size)
