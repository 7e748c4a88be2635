"""Settings that decide memory use: residency, batch and window sizes, and their defaults."""

from __future__ import annotations

from dataclasses import dataclass

from stepscore.artifact.generic_graphs import uses_generic_graphs
from stepscore.artifact.manifest import Manifest
from stepscore.enums import Exporter, Format, Residency, Target
from stepscore.errors import PairIncompatible

HEAD_ROWS = 1024
"""Tokens per chunk of the head; the logits of a chunk and one vocabulary tile are 33 MB per copy."""
INTEGER_HEAD_ROWS = 256
"""The same for W8A8, which holds more copies and reaches full speed with fewer tokens."""
CUDA_HEAD_ROWS = 4096
BATCH_TOKENS = 2048
CUDA_BATCH_TOKENS = 8192
"""A GPU needs more tokens per GEMM for full speed, and has the memory."""
LEAST_BATCH_TOKENS = 128
LEAST_GPU_TOKENS = 2048
"""Smaller batches are tried after layers are streamed, which costs less."""
WINDOW_TOKENS = 16_384
"""Tokens that are scheduled together: prefixes are shared, and weights streamed, once per window."""
WINDOW_BATCHES = 8
"""Maximum number of batches that wait in memory for the next weights."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Choices that a memory limit decides."""

    residency: Residency
    max_batch_tokens: int
    window_tokens: int
    head_rows: int
    resident_stages: int = 0
    """With `partial`: layers and parts of the head that stay on the device."""
    on_gpu: bool = False
    """Whether a pair for CUDA runs on a GPU, not on the CPU in its place."""
    prefix_cache: int = 0
    """Bytes in host memory for prefixes of earlier calls; 0: none is kept."""
    materializes_scores: bool = True
    """Whether attention materializes the [B, S, S] scores of short sequences, as on the CPU."""

    @property
    def element_bytes(self) -> int:
        """Return the bytes of an activation or a decoded weight."""
        return 2 if self.on_gpu else 4


def usual_head_rows(manifest: Manifest) -> int:
    """Return the default number of tokens per chunk of the head."""
    if manifest.target is Target.CUDA:
        return CUDA_HEAD_ROWS
    return INTEGER_HEAD_ROWS if manifest.has_int8_activations else HEAD_ROWS


def usual_batch_tokens(manifest: Manifest) -> int:
    """Return the default number of tokens per batch."""
    return CUDA_BATCH_TOKENS if manifest.target is Target.CUDA else BATCH_TOKENS


def residencies(manifest: Manifest) -> list[Residency]:
    """Return the residencies that a pair supports, the fastest first: `auto` chooses among them."""
    if uses_generic_graphs(manifest):
        return [Residency.RESIDENT, Residency.PARTIAL, Residency.STREAM]
    one_at_a_time = [Residency.ALTERNATE] if len(manifest.units) > 1 else []
    in_layers = manifest.format is Format.ONNX and manifest.exporter is Exporter.STEPSCORE
    streamed = [Residency.STREAM] if in_layers else []
    return [Residency.RESIDENT, *one_at_a_time, *streamed]


def check_residency(manifest: Manifest, residency: Residency) -> None:
    """Raise PairIncompatible where the pair does not support a residency."""
    if residency is Residency.AUTO or residency in residencies(manifest):
        return
    generic = uses_generic_graphs(manifest)
    if residency is Residency.PARTIAL:
        raise PairIncompatible(
            "only stepscore's own pairs for CUDA support --residency partial",
            hint="use --residency auto",
        )
    if residency is Residency.ALTERNATE and generic:
        raise PairIncompatible(
            "pairs for CUDA do not support --residency alternate: streaming is nearly as fast",
            hint="use --residency partial with a --memory-limit, or --residency stream",
        )
    if residency is Residency.STREAM and residency not in residencies(manifest):
        kind = manifest.exporter if manifest.format is Format.ONNX else manifest.format
        raise PairIncompatible(
            f"{kind} pairs do not support --residency stream: they do not store layers separately",
            hint="use --residency alternate, which holds one model at a time",
        )
