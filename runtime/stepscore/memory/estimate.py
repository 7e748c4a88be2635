"""How much memory scoring takes, from the manifest alone, and what to choose to stay within a limit.

On the CPU that is the resident set of the process, mapped pages of the weight file included; on CUDA what the
driver says is used of the GPU's memory. What is alive at the worst moment depends on how weights are stored;
the constants of each form were found by running it (full_size.py, residency.py and gpu.py in benchmarks/).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from stepscore.artifact.graph_contract import BODY, EMBED, HEAD, TILE, head_files, layer_file, piece_rows
from stepscore.artifact.manifest import TOKENIZER, Manifest, Unit, safetensors_files
from stepscore.batching.batch import Batch
from stepscore.enums import Exporter, Format, Precision, Residency, Target
from stepscore.errors import DoesNotFit, PairIncompatible
from stepscore.memory.settings import Settings


@dataclass(frozen=True, slots=True)
class PeakLoad:
    """The most that a run holds at once: rows of a batch, its scores of attention (B * S * S), rows of all
    batches of a window; how many different tokens it looks up; positions of a batch's padded view (B * S),
    which is what a traced pair computes."""

    rows: int
    scores: int
    window_rows: int
    vocabulary: int = 1500
    positions: int = 0

    @classmethod
    def usual(cls, settings: Settings) -> PeakLoad:
        """Expect full batches of sequences of 512 tokens that share nothing, half of a padded view filled."""
        rows = settings.max_batch_tokens
        window_rows = max(settings.window_tokens, rows)
        return cls(rows, rows * min(rows, 512), window_rows, positions=2 * rows)

    @classmethod
    def of(cls, windows: Iterable[Sequence[Batch]]) -> PeakLoad:
        """Return the largest of each over the windows of a run."""
        rows = scores = window_rows = positions = 0
        looked_up: set[int] = set()
        for window in windows:
            for batch in window:
                lines, length = batch.pad_index.shape
                positions = max(positions, lines * length)
                rows, scores = max(rows, len(batch.input_ids)), max(scores, lines * length * length)
                looked_up.update(batch.input_ids.tolist())
            window_rows = max(window_rows, sum(len(batch.input_ids) for batch in window))
        return cls(rows, scores, window_rows, len(looked_up), positions)


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """Bytes at the peak."""

    process: int
    """Python, ONNX Runtime and the tokenizer."""
    weights: int
    """As they lie in memory, and what a product makes of them."""
    batch: int
    """What a batch needs beside them, in its layers or in the head."""
    window: int
    """Rows of a window's batches that wait for the next layer."""

    @property
    def total(self) -> int:
        """Peak resident set of the process."""
        return self.process + self.weights + self.batch + self.window


@dataclass(frozen=True, slots=True)
class _FormConstants:
    """What the products of a form of storage hold beside weights and rows, at the worst moment."""

    arrays: float
    """Of a layer: arrays of float32 [rows, intermediate_size]."""
    logits: float
    """Of the head: arrays of float32 [rows of a chunk, TILE]."""
    copies: float = 0
    """Of a matrix, or as much of it as is turned into float32 at a time."""
    scores: float = 1
    """Of attention: arrays of float32 [B, S, S] a head."""
    held: float = 1
    """Bytes in memory for a byte of weights, where everything is resident: packed, or turned into float32."""


_INTEGER = _FormConstants(arrays=9, logits=12, held=1.22)
_MERGED = _FormConstants(arrays=5, logits=2, copies=10)
_SEPARATE = _FormConstants(arrays=4, logits=4)
_BLOCKS = _FormConstants(arrays=4, logits=4, copies=3)
_FLOAT32 = _FormConstants(arrays=3, logits=4)
_TRACED = _FormConstants(arrays=4, logits=4, scores=5)
_TRACED16 = _FormConstants(arrays=4, logits=4, scores=5, copies=1.4, held=2.1)
_FLOAT16 = _FormConstants(arrays=3, logits=4, copies=1, held=2.1)
_TORCH = _FormConstants(arrays=3, logits=3, copies=1)

GPU_BYTES = 1_700_000_000
"""What CUDA, cuBLAS and an arena take before there is a batch."""
GPU_ARRAYS = 10
"""Of a layer there: arrays of 16-bit [rows, intermediate_size]."""
PROCESS_BYTES = 65 << 20
TORCH_BYTES = 300 << 20
"""PyTorch, transformers and bitsandbytes, imported."""
TOKENIZER_BYTES = 17.5
"""Bytes in memory for a byte of tokenizer.json."""
KEPT_BYTES = 90 << 20
"""What the allocator has of freed memory, where weights come and go."""
TORCH_KEPT_BYTES = 150 << 20
"""The same of PyTorch's."""
MAPPED_BYTES = 512 << 10
"""What the kernel maps of an embedding around a row that is looked up: 64 kB, or a page of the cache, which
may be large, and is where a file was written in one go."""


def estimate(manifest: Manifest, settings: Settings, load: PeakLoad | None = None) -> MemoryEstimate:
    """Return the memory that scoring takes at its peak; without a load, that of full batches."""
    load = load or PeakLoad.usual(settings)
    if manifest.target is Target.CUDA and manifest.exporter is Exporter.STEPSCORE:
        return _on_gpu(manifest, settings, load)
    process = round(PROCESS_BYTES + TOKENIZER_BYTES * manifest.files[TOKENIZER].size)
    in_layer, in_head = _layer(manifest, load), _head(manifest, settings, load)
    if manifest.format is Format.BITSANDBYTES:
        stored = [_stored(manifest, unit) for unit in manifest.units]
        resident = settings.residency is Residency.RESIDENT
        process += TORCH_BYTES + (0 if resident else TORCH_KEPT_BYTES)
        return MemoryEstimate(process, sum(stored) if resident else max(stored), max(in_layer, in_head), 0)
    if manifest.exporter is Exporter.OPTIMUM:  # arrays of many sizes: none takes another's place
        in_layer = in_head = in_layer + in_head
    if settings.residency is Residency.RESIDENT:
        weights = sum(_held(manifest, unit, load) for unit in manifest.units)
        return MemoryEstimate(process, weights, max(in_layer, in_head), 0)
    streams = max(len(unit.models) for unit in manifest.units)
    window = 4 * load.window_rows * streams * manifest.architecture.hidden_size
    process += KEPT_BYTES
    if settings.residency is Residency.ALTERNATE:
        weights = max(_held(manifest, unit, load) for unit in manifest.units)
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


def _on_gpu(manifest: Manifest, settings: Settings, load: PeakLoad) -> MemoryEstimate:
    """Everything there is 16 bits wide; products turn whole matrices into floats."""
    shape = manifest.architecture
    matrix = shape.intermediate_size * shape.hidden_size
    copies = 0 if manifest.difference is None else 3 if manifest.is_merged else 1
    in_layer = GPU_ARRAYS * load.rows * shape.intermediate_size + copies * matrix
    streams = max(len(unit.models) for unit in manifest.units)
    window = streams * load.window_rows * shape.hidden_size
    weights = _weights_on_gpu(manifest, settings.residency, (EMBED, BODY, HEAD))
    waiting = 0 if settings.residency is Residency.RESIDENT else window
    return MemoryEstimate(GPU_BYTES, weights, 2 * in_layer, 2 * waiting)


def _weights_on_gpu(manifest: Manifest, residency: Residency, graphs: Sequence[str]) -> int:
    if residency is Residency.STREAM:
        return 2 * max(unit.extents[layer_file(0)].size for unit in manifest.units)
    whole = [sum(unit.extents[name].size for name in graphs) for unit in manifest.units]
    return max(whole) if residency is Residency.ALTERNATE else sum(whole)


def check_gpu_limit(manifest: Manifest, residency: Residency, limit: int) -> None:
    """Raise DoesNotFit where the limit of a GPU's arena is below the weights that it is to hold.

    ONNX Runtime takes weights off the limit without asking, in unsigned numbers: a limit that is lower has
    no effect at all. One that is higher holds.
    """
    weights = _weights_on_gpu(manifest, residency, (BODY, HEAD))
    if weights >= limit:
        raise DoesNotFit(
            f"weights alone take {weights / 1e9:.2f} GB of the GPU; the limit is {limit / 1e9:.2f} GB",
            hint="raise the limit, take --residency stream, or export the pair at fewer bits",
        )


def _held(manifest: Manifest, unit: Unit, load: PeakLoad) -> int:
    products = unit.extents[BODY].size + unit.extents[HEAD].size
    return _looked_up(unit, load) + round(_form(manifest).held * products)


def _stored(manifest: Manifest, unit: Unit) -> int:
    return sum(manifest.files[name].size for name in safetensors_files(manifest, unit))


def _looked_up(unit: Unit, load: PeakLoad) -> int:
    return min(unit.extents[EMBED].size, len(unit.models) * load.vocabulary * MAPPED_BYTES)


def _layer(manifest: Manifest, load: PeakLoad) -> int:
    form, shape = _form(manifest), manifest.architecture
    matrix = shape.intermediate_size * shape.hidden_size
    scores = load.scores * shape.num_attention_heads
    rows = load.positions if manifest.exporter is Exporter.OPTIMUM else load.rows
    in_mlp = form.arrays * rows * shape.intermediate_size + form.copies * _copied(manifest, matrix)
    return round(4 * max(in_mlp, form.scores * scores))


def _head(manifest: Manifest, settings: Settings, load: PeakLoad) -> int:
    form, shape = _form(manifest), manifest.architecture
    tile = min(TILE, shape.vocab_size)
    logits = form.logits * min(settings.head_rows, load.rows) * tile
    return round(4 * (logits + form.copies * _copied(manifest, tile * shape.hidden_size)))


def _copied(manifest: Manifest, elements: int) -> int:
    columns = max(manifest.architecture.hidden_size, manifest.architecture.intermediate_size)
    return min(piece_rows(columns) * columns, elements) if manifest.dequantizes else elements


def _form(manifest: Manifest) -> _FormConstants:
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


def residencies(manifest: Manifest) -> list[Residency]:
    """Return what `auto` chooses from, the fastest first."""
    one_at_a_time = [Residency.ALTERNATE] if len(manifest.units) > 1 else []
    in_layers = manifest.format is Format.ONNX and manifest.exporter is Exporter.STEPSCORE
    streamed = [Residency.STREAM] if in_layers else []
    return [Residency.RESIDENT, *one_at_a_time, *streamed]


def check_residency(manifest: Manifest, residency: Residency) -> None:
    """Raise PairIncompatible where the pair has no such residency."""
    if residency is Residency.STREAM and residency not in residencies(manifest):
        kind = manifest.exporter if manifest.format is Format.ONNX else manifest.format
        raise PairIncompatible(
            f"{kind} pairs cannot be streamed: their layers are not files of their own",
            hint="--residency alternate holds one model at a time",
        )
