"""Estimate of scoring's peak memory, from the manifest alone.

On the CPU it is the resident set of the process, mapped pages of the weight file included. What is alive at
the peak depends on how weights are stored: forms.py. For pairs for CUDA it is the GPU's memory: gpu.py.
"""

from __future__ import annotations

from dataclasses import replace

from stepscore.artifact.generic_graphs import uses_generic_graphs
from stepscore.artifact.graph_contract import BODY, EMBED, HEAD, TILE, head_files, layer_file, piece_rows
from stepscore.artifact.manifest import TOKENIZER, Manifest, Unit, safetensors_files
from stepscore.enums import Exporter, Format, Residency
from stepscore.memory.forms import (
    KEPT_BYTES,
    MAPPED_BYTES,
    PROCESS_BYTES,
    TOKENIZER_BYTES,
    TORCH_BYTES,
    TORCH_KEPT_BYTES,
    attention_elements,
    form_of,
)
from stepscore.memory.gpu import estimate_generic
from stepscore.memory.kept import num_kept_tokens
from stepscore.memory.peak import MemoryEstimate, PeakLoad
from stepscore.memory.settings import Settings


def estimate(manifest: Manifest, settings: Settings, load: PeakLoad | None = None) -> MemoryEstimate:
    """Return the peak memory of scoring under this load (default: full batches)."""
    load = load or PeakLoad.usual(settings)
    found = _without_cache(manifest, settings, load)
    if not settings.prefix_cache or settings.on_gpu:
        return found
    return replace(found, batch=found.batch + _given(manifest, settings, load), kept=settings.prefix_cache)


def _given(manifest: Manifest, settings: Settings, load: PeakLoad) -> int:
    """Return the memory of a batch's given rows in one layer.

    Their keys and values are copied out of the cache; attention also pads them to the width of the computed
    rows, and joins both.
    """
    shape = manifest.architecture
    keys_values = 2 * shape.num_key_value_heads * shape.head_dim
    projected = shape.num_attention_heads * shape.head_dim + keys_values
    rows = min(load.given, num_kept_tokens(manifest, settings.prefix_cache, settings.element_bytes))
    streams = max(len(unit.models) for unit in manifest.units)
    return settings.element_bytes * streams * rows * (keys_values + 2 * projected)


def _without_cache(manifest: Manifest, settings: Settings, load: PeakLoad) -> MemoryEstimate:
    if uses_generic_graphs(manifest):
        return estimate_generic(manifest, settings, load)
    process = round(PROCESS_BYTES + TOKENIZER_BYTES * manifest.files[TOKENIZER].size)
    in_layer, in_head = _layer(manifest, load), _head(manifest, settings, load)
    if manifest.format is Format.BITSANDBYTES:
        stored = [_stored(manifest, unit) for unit in manifest.units]
        resident = settings.residency is Residency.RESIDENT
        process += TORCH_BYTES + (0 if resident else TORCH_KEPT_BYTES)
        return MemoryEstimate(process, sum(stored) if resident else max(stored), max(in_layer, in_head), 0)
    if manifest.exporter is Exporter.OPTIMUM:  # buffers differ in size and are not reused
        in_layer = in_head = in_layer + in_head
    if settings.residency is Residency.RESIDENT:
        weights = sum(_held(manifest, unit, load) for unit in manifest.units)
        in_layer += _kept_scores(manifest, load)
        return MemoryEstimate(process, weights, max(in_layer, in_head), 0)
    streams = max(len(unit.models) for unit in manifest.units)
    window = 4 * load.window_rows * streams * manifest.architecture.hidden_size
    process += KEPT_BYTES
    if settings.residency is Residency.ALTERNATE:
        weights = max(_held(manifest, unit, load) for unit in manifest.units)
        in_layer += _kept_scores(manifest, load)
        return MemoryEstimate(process, weights, max(in_layer, in_head), window)
    weights, batch = max(
        (
            stage
            for unit in manifest.units
            for stage in (
                (_looked_up(unit, load), 0),
                (unit.extents[layer_file(0)].size, in_layer),
                (unit.extents[head_files(manifest.architecture.vocab_size)[0]].size, in_head),
            )
        ),
        key=sum,
    )
    return MemoryEstimate(process, weights, batch, window)


def _held(manifest: Manifest, unit: Unit, load: PeakLoad) -> int:
    products = unit.extents[BODY].size + unit.extents[HEAD].size
    return _looked_up(unit, load) + round(form_of(manifest).held * products)


def _stored(manifest: Manifest, unit: Unit) -> int:
    return sum(manifest.files[name].size for name in safetensors_files(manifest, unit))


def _looked_up(unit: Unit, load: PeakLoad) -> int:
    return min(unit.extents[EMBED].size, len(unit.models) * load.vocabulary * MAPPED_BYTES)


def _layer(manifest: Manifest, load: PeakLoad) -> int:
    form, shape = form_of(manifest), manifest.architecture
    matrix = shape.intermediate_size * shape.hidden_size
    scores = load.scores * shape.num_attention_heads
    rows = load.positions if manifest.exporter is Exporter.OPTIMUM else load.rows
    wide = form.arrays * shape.intermediate_size + form.hidden * shape.hidden_size
    in_mlp = rows * wide + form.copies * _copied(manifest, matrix)
    streams = max(len(unit.models) for unit in manifest.units)
    return round(4 * max(in_mlp, form.scores * scores, streams * attention_elements(shape, load)))


def _kept_scores(manifest: Manifest, load: PeakLoad) -> int:
    """Return the memory of attention scores that ONNX Runtime's arena keeps beside that of the MLP.

    So it is where graphs stay open; a streamed layer gives its memory back.

    The arena takes what is requested from the system and never joins two requests. Scores no larger than an
    array of the MLP are written where that was, so only what is beyond it counts. Each batch with more scores
    than all before it takes new memory, as what an earlier one left is too small.
    """
    shape = manifest.architecture
    array = load.rows * shape.intermediate_size
    beyond = (max(step * shape.num_attention_heads - array, 0) for step in load.score_steps)
    return round(4 * form_of(manifest).kept_scores * sum(beyond))


def _head(manifest: Manifest, settings: Settings, load: PeakLoad) -> int:
    form, shape = form_of(manifest), manifest.architecture
    tile = min(TILE, shape.vocab_size)
    logits = form.logits * min(settings.head_rows, load.rows) * tile
    return round(4 * (logits + form.copies * _copied(manifest, tile * shape.hidden_size)))


def _copied(manifest: Manifest, elements: int) -> int:
    columns = max(manifest.architecture.hidden_size, manifest.architecture.intermediate_size)
    return min(piece_rows(columns) * columns, elements) if manifest.dequantizes else elements
