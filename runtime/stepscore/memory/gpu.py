"""Estimate of a GPU's memory, and the check of its limit. Constants measured by benchmarks/gpu.py."""

from __future__ import annotations

from collections.abc import Sequence

from stepscore.artifact.graph_contract import BODY, EMBED, HEAD, layer_file
from stepscore.artifact.manifest import Manifest
from stepscore.enums import Residency
from stepscore.errors import DoesNotFit
from stepscore.memory.peak import MemoryEstimate, PeakLoad
from stepscore.memory.settings import Settings

GPU_BYTES = 1_700_000_000
"""CUDA context, cuBLAS and an empty arena."""
GPU_ARRAYS = 10
"""Of a layer: 16-bit arrays [tokens, intermediate_size]."""


def estimate_on_gpu(manifest: Manifest, settings: Settings, load: PeakLoad) -> MemoryEstimate:
    """Return the memory of a GPU: all values have 16 bits, and whole matrices are dequantized."""
    shape = manifest.architecture
    matrix = shape.intermediate_size * shape.hidden_size
    copies = 0 if manifest.difference is None else 3 if manifest.is_merged else 1
    in_layer = GPU_ARRAYS * load.rows * shape.intermediate_size + copies * matrix
    streams = max(len(unit.models) for unit in manifest.units)
    window = streams * load.window_rows * shape.hidden_size
    weights = _weights(manifest, settings.residency, (EMBED, BODY, HEAD))
    waiting = 0 if settings.residency is Residency.RESIDENT else window
    return MemoryEstimate(GPU_BYTES, weights, 2 * in_layer, 2 * waiting)


def check_gpu_limit(manifest: Manifest, residency: Residency, limit: int) -> None:
    """Raise DoesNotFit where the limit of a GPU's arena is not above the size of the weights in it.

    ONNX Runtime subtracts the size of the weights from the limit in unsigned arithmetic: with a limit below
    it the difference wraps around, and the limit has no effect.
    """
    weights = _weights(manifest, residency, (BODY, HEAD))
    if weights >= limit:
        raise DoesNotFit(
            f"the weights need {weights / 1e9:.2f} GB of GPU memory; the limit is {limit / 1e9:.2f} GB",
            hint="raise the limit, use --residency stream, or export the pair at fewer bits",
        )


def _weights(manifest: Manifest, residency: Residency, graphs: Sequence[str]) -> int:
    if residency is Residency.STREAM:
        return 2 * max(unit.extents[layer_file(0)].size for unit in manifest.units)
    whole = [sum(unit.extents[name].size for name in graphs) for unit in manifest.units]
    return max(whole) if residency is Residency.ALTERNATE else sum(whole)
