"""Constants of the CPU's memory by form of storage, fitted to measured peaks.

Peaks of Qwen2.5's shapes by benchmarks/residency.py and full_size.py, and of whole runs of `score` on the
bundled pair in seven forms and on a pair of 0.5B: these runs' estimates are within 15 % of the peak.
"""

from __future__ import annotations

from dataclasses import dataclass

from stepscore.artifact.manifest import Architecture, Manifest
from stepscore.enums import Exporter, Format, Precision
from stepscore.memory.peak import PeakLoad

PROCESS_BYTES = 92 << 20
"""Python, the command line, ONNX Runtime and a first session."""
TORCH_BYTES = 300 << 20
"""PyTorch, transformers and bitsandbytes, imported."""
TOKENIZER_BYTES = 22
"""Bytes in memory per byte of tokenizer.json."""
KEPT_BYTES = 70 << 20
"""Freed memory that the allocator retains while weights are streamed."""
TORCH_KEPT_BYTES = 150 << 20
"""Freed memory that PyTorch's allocator retains."""
MAPPED_BYTES = 512 << 10
"""Bytes mapped around an embedding row that is looked up: at least 64 kB (fault-around), and up to a large
page-cache folio where the file was written in one go."""

PROJECTED_ROWS, PROJECTED_POSITIONS = 5, 2.5
"""Of attention: arrays of queries, keys and values, by packed tokens and by positions of the padded view.
They are the peak of a layer only where heads are wide beside the MLP. Measured on two layers of Qwen3-0.6B's
shape, at fp32 and with int8 activations: estimates are within 15 % of the peaks of `score`."""


@dataclass(frozen=True, slots=True)
class FormConstants:
    """Memory that the matmuls of one form of storage hold besides weights and hidden states, at the peak."""

    arrays: float
    """Of a layer: float32 arrays [tokens, intermediate_size]."""
    logits: float
    """Of the head: float32 arrays [tokens of a chunk, TILE]."""
    copies: float = 0
    """Of a weight matrix, or of the tile of it that is dequantized at once."""
    scores: float = 1
    """Of attention: float32 arrays [B, S, S] per head."""
    hidden: float = 0
    """Of a layer: float32 arrays [tokens, hidden_size]."""
    kept_scores: float = 1.3
    """Of attention: as `scores`, of those that have memory of their own (estimate.py)."""
    held: float = 1
    """Bytes in memory per stored byte of weights that stay resident: prepacked or converted to fp32."""


_INTEGER = FormConstants(arrays=2, logits=12, hidden=34, held=1.2)
_MERGED = FormConstants(arrays=5, logits=2, copies=10)
_SEPARATE = FormConstants(arrays=4, logits=4)
_BLOCKS = FormConstants(arrays=4, logits=4, copies=3)
_FLOAT32 = FormConstants(arrays=3, logits=4)
_TRACED = FormConstants(arrays=7, logits=7, scores=8.5)
_TRACED16 = FormConstants(arrays=4, logits=4, scores=5, copies=1.4, held=2.1)
_FLOAT16 = FormConstants(arrays=3, logits=4, copies=1, held=2.1)
_TORCH = FormConstants(arrays=3, logits=3, copies=1)


def attention_elements(shape: Architecture, load: PeakLoad) -> float:
    """Return the elements of what is alive in the attention of one model, besides its scores."""
    projected = (shape.num_attention_heads + 2 * shape.num_key_value_heads) * shape.head_dim
    return projected * (PROJECTED_ROWS * load.rows + PROJECTED_POSITIONS * load.positions)


def form_of(manifest: Manifest) -> FormConstants:
    """Return the constants of a pair's form of storage."""
    if manifest.format is Format.BITSANDBYTES:
        return _TORCH
    if manifest.exporter is Exporter.OPTIMUM:
        return _TRACED if manifest.precision is Precision.FP32 else _TRACED16
    if manifest.has_int8_activations:
        return _INTEGER
    if manifest.difference is not None:
        return _MERGED if manifest.is_merged else _SEPARATE
    if manifest.precision is Precision.FP32:
        return _FLOAT32
    return _FLOAT16 if manifest.precision in {Precision.FP16, Precision.BF16} else _BLOCKS
