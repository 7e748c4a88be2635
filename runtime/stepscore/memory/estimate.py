"""How much memory scoring takes, from the manifest alone, and what to choose to stay within a limit.

On the CPU that is the resident set of the process, mapped pages of the weight file included; on CUDA what the
driver says is used of the GPU's memory. What is alive at the worst moment depends on how weights are stored;
the constants of each form were found by running it (full_size.py, residency.py and gpu.py in benchmarks/).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from stepscore.artifact.manifest import (
    BODY,
    EMBED,
    HEAD,
    TOKENIZER,
    Manifest,
    Unit,
    head_files,
    layer_file,
    safetensors_files,
)
from stepscore.batching.planner import Batch
from stepscore.enums import Exporter, Format, Precision, Residency, Target
from stepscore.errors import DoesNotFit, PairIncompatible

HEAD_ROWS = 1024
"""Rows in one chunk of the head. Its graph holds logits for one tile of the vocabulary: 33 MB a copy."""
INTEGER_HEAD_ROWS = 256
"""The same for integer products, which hold more copies and need no more rows to be at full speed."""
BATCH_TOKENS = 2048
CUDA_HEAD_ROWS = 4096
CUDA_BATCH_TOKENS = 8192
"""A GPU wants more rows a product, and has the memory."""
LEAST_BATCH_TOKENS = 128
WINDOW_TOKENS = 16_384
"""Records in which shared prefixes are found; where weights come and go, they do so once a window."""
WINDOW_BATCHES = 8
"""At most so many batches wait in memory for the next weights."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What a memory limit decides."""

    residency: Residency
    max_batch_tokens: int
    window_tokens: int
    head_rows: int
    holds_scores: bool = True
    """Whether attention has all scores of a batch of short sequences in memory: the CPU's does."""


@dataclass(frozen=True, slots=True)
class Load:
    """The most that a run holds at once: rows of a batch, its scores of attention (B * S * S), rows of all
    batches of a window; how many different tokens it looks up; positions of a batch's padded view (B * S),
    which is what a traced pair computes."""

    rows: int
    scores: int
    window_rows: int
    vocabulary: int = 1500
    positions: int = 0

    @classmethod
    def usual(cls, settings: Settings) -> Load:
        """Expect full batches of sequences of 512 tokens that share nothing, half of a padded view filled."""
        rows = settings.max_batch_tokens
        window_rows = max(settings.window_tokens, rows)
        return cls(rows, rows * min(rows, 512), window_rows, positions=2 * rows)

    @classmethod
    def of(cls, windows: Iterable[Sequence[Batch]]) -> Load:
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
class Estimate:
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


def usual_head_rows(manifest: Manifest) -> int:
    """Return the rows in a chunk of the head, where no memory limit says less."""
    if manifest.target is Target.CUDA:
        return CUDA_HEAD_ROWS
    return INTEGER_HEAD_ROWS if manifest.has_int8_activations else HEAD_ROWS


def usual_batch_tokens(manifest: Manifest) -> int:
    """Return the tokens of a batch, where nothing says less."""
    return CUDA_BATCH_TOKENS if manifest.target is Target.CUDA else BATCH_TOKENS


@dataclass(frozen=True, slots=True)
class _Form:
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


_INTEGER = _Form(arrays=9, logits=12, held=1.22)
_MERGED = _Form(arrays=5, logits=2, copies=10)
_SEPARATE = _Form(arrays=4, logits=4)
_BLOCKS = _Form(arrays=4, logits=4, copies=3)
_FLOAT32 = _Form(arrays=3, logits=4)
_TRACED = _Form(arrays=4, logits=4, scores=5)
_TRACED16 = _Form(arrays=4, logits=4, scores=5, copies=1.4, held=2.1)
_FLOAT16 = _Form(arrays=3, logits=4, copies=1, held=2.1)
_TORCH = _Form(arrays=3, logits=3, copies=1)

TILE = 8192
PIECE_ELEMENTS, PIECE_ROWS = 1 << 21, 256
"""What a matrix is cut into that the CPU turns into float32: so much at a time, but never fewer rows."""
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


def piece_rows(columns: int) -> int:
    """Return the rows of a piece of a matrix [rows, columns] that is turned into float32.

    >>> [piece_rows(columns) for columns in (1536, 3584, 18_944)]
    [1280, 512, 256]
    """
    return max(PIECE_ROWS, PIECE_ELEMENTS // columns // PIECE_ROWS * PIECE_ROWS)


def estimate(manifest: Manifest, settings: Settings, load: Load | None = None) -> Estimate:
    """Return the memory that scoring takes at its peak; without a load, that of full batches."""
    load = load or Load.usual(settings)
    if manifest.target is Target.CUDA and manifest.exporter is Exporter.STEPSCORE:
        return _on_gpu(manifest, settings, load)
    process = round(PROCESS_BYTES + TOKENIZER_BYTES * manifest.files[TOKENIZER].size)
    in_layer, in_head = _layer(manifest, load), _head(manifest, settings, load)
    if manifest.format is Format.BITSANDBYTES:
        stored = [_stored(manifest, unit) for unit in manifest.units]
        resident = settings.residency is Residency.RESIDENT
        process += TORCH_BYTES + (0 if resident else TORCH_KEPT_BYTES)
        return Estimate(process, sum(stored) if resident else max(stored), max(in_layer, in_head), 0)
    if manifest.exporter is Exporter.OPTIMUM:  # arrays of many sizes: none takes another's place
        in_layer = in_head = in_layer + in_head
    if settings.residency is Residency.RESIDENT:
        weights = sum(_held(manifest, unit, load) for unit in manifest.units)
        return Estimate(process, weights, max(in_layer, in_head), 0)
    streams = max(len(unit.models) for unit in manifest.units)
    window = 4 * load.window_rows * streams * manifest.architecture.hidden_size
    process += KEPT_BYTES
    if settings.residency is Residency.ALTERNATE:
        weights = max(_held(manifest, unit, load) for unit in manifest.units)
        return Estimate(process, weights, max(in_layer, in_head), window)
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
    return Estimate(process, weights, batch, window)


def _on_gpu(manifest: Manifest, settings: Settings, load: Load) -> Estimate:
    """Everything there is 16 bits wide; products turn whole matrices into floats."""
    shape = manifest.architecture
    matrix = shape.intermediate_size * shape.hidden_size
    copies = 0 if manifest.difference is None else 3 if manifest.is_merged else 1
    in_layer = GPU_ARRAYS * load.rows * shape.intermediate_size + copies * matrix
    streams = max(len(unit.models) for unit in manifest.units)
    window = streams * load.window_rows * shape.hidden_size
    weights = _weights_on_gpu(manifest, settings.residency, (EMBED, BODY, HEAD))
    waiting = 0 if settings.residency is Residency.RESIDENT else window
    return Estimate(GPU_BYTES, weights, 2 * in_layer, 2 * waiting)


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


def _held(manifest: Manifest, unit: Unit, load: Load) -> int:
    products = unit.extents[BODY].size + unit.extents[HEAD].size
    return _looked_up(unit, load) + round(_form(manifest).held * products)


def _stored(manifest: Manifest, unit: Unit) -> int:
    return sum(manifest.files[name].size for name in safetensors_files(manifest, unit))


def _looked_up(unit: Unit, load: Load) -> int:
    return min(unit.extents[EMBED].size, len(unit.models) * load.vocabulary * MAPPED_BYTES)


def _layer(manifest: Manifest, load: Load) -> int:
    form, shape = _form(manifest), manifest.architecture
    matrix = shape.intermediate_size * shape.hidden_size
    scores = load.scores * shape.num_attention_heads
    rows = load.positions if manifest.exporter is Exporter.OPTIMUM else load.rows
    in_mlp = form.arrays * rows * shape.intermediate_size + form.copies * _copied(manifest, matrix)
    return round(4 * max(in_mlp, form.scores * scores))


def _head(manifest: Manifest, settings: Settings, load: Load) -> int:
    form, shape = _form(manifest), manifest.architecture
    tile = min(TILE, shape.vocab_size)
    logits = form.logits * min(settings.head_rows, load.rows) * tile
    return round(4 * (logits + form.copies * _copied(manifest, tile * shape.hidden_size)))


def _copied(manifest: Manifest, elements: int) -> int:
    columns = max(manifest.architecture.hidden_size, manifest.architecture.intermediate_size)
    return min(piece_rows(columns) * columns, elements) if manifest.dequantizes else elements


def _form(manifest: Manifest) -> _Form:
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


def settle(
    manifest: Manifest,
    *,
    residency: Residency = Residency.AUTO,
    memory_limit: int | None = None,
    max_batch_tokens: int | None = None,
    window_tokens: int | None = None,
) -> Settings:
    """Choose what is not given: the fastest that stays within the limit, or within the memory that is free.

    Everything resident is faster than one model at a time, that is faster than one layer at a time, and
    large batches are faster than small ones. Raises DoesNotFit where a given limit is too low for all; what
    is free is not a limit, only a reason to choose.
    """
    check_residency(manifest, residency)
    limit = memory_limit
    if limit is None and manifest.target is not Target.CUDA:
        limit = available_bytes()
    choices = list(_choices(manifest, residency, max_batch_tokens, window_tokens))
    needs = [estimate(manifest, settings).total for settings in choices]
    for settings, needed in zip(choices, needs, strict=True):
        if limit is None or needed <= limit:
            return settings
    needed, least = min(zip(needs, choices, strict=True), key=lambda each: each[0])
    if memory_limit is None:
        return least
    raise DoesNotFit(
        f"{least.residency} scoring in batches of {least.max_batch_tokens} tokens needs about "
        f"{needed / 1e9:.2f} GB; the limit is {memory_limit / 1e9:.2f} GB",
        hint="raise --memory-limit, let --residency be auto, or export the pair at fewer bits",
    )


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


def _choices(
    manifest: Manifest, residency: Residency, max_batch_tokens: int | None, window_tokens: int | None
) -> Iterator[Settings]:
    """Give what is possible, the fastest first."""
    on_cuda = manifest.target is Target.CUDA
    for each in residencies(manifest) if residency is Residency.AUTO else [residency]:
        tokens = max_batch_tokens or usual_batch_tokens(manifest)
        while True:
            waiting = WINDOW_TOKENS if each is Residency.RESIDENT else WINDOW_BATCHES * tokens
            usual = min(WINDOW_TOKENS, waiting)
            window = max(window_tokens or usual, tokens)
            yield Settings(each, tokens, window, min(usual_head_rows(manifest), tokens), not on_cuda)
            tokens //= 2
            if max_batch_tokens is not None or tokens < LEAST_BATCH_TOKENS:
                break


def available_bytes() -> int | None:
    """Return the memory that Linux could give, a container's limit included; None elsewhere."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    available = next(
        (int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None
    )
    try:
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii"))
        used = int(Path("/sys/fs/cgroup/memory.current").read_text(encoding="ascii"))
        stat = Path("/sys/fs/cgroup/memory.stat").read_text(encoding="ascii").split()
        cached = int(stat[stat.index("inactive_file") + 1])  # is given up when memory is asked for
    except (OSError, ValueError):  # no limit: no file, or "max"
        return available
    free = limit - used + cached
    return free if available is None else min(available, free)
