"""What the parts of the GPU benchmark share: hollow pairs, text, settings, and how passes are timed."""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
from benchmarks.peers.contender import Tokens
from benchmarks.support.forms import CODED
from benchmarks.support.gpu_plan import FULL, GPU_FORMS, QUICK_SIZES, Sizes
from benchmarks.support.hollow import write_hollow_checkpoint, write_hollow_pair
from benchmarks.support.machine import gpu_peak_mb, sampled_peak, status_mb
from benchmarks.support.rates import rounded
from benchmarks.support.shapes import QUICK
from benchmarks.support.workloads import best_of_8
from testing.shared_data import SHARED_DATA

from stepscore.artifact.manifest import MANIFEST, Manifest
from stepscore.artifact.pair import Pair
from stepscore.batching.batch import Batch
from stepscore.batching.prefetch import prefetch
from stepscore.batching.windows import fill_windows
from stepscore.bench import planned, rate
from stepscore.engine.base import Engine
from stepscore.enums import Provider, Residency
from stepscore.memory.gpu import stage_sizes
from stepscore.memory.settings import CUDA_BATCH_TOKENS, CUDA_HEAD_ROWS, WINDOW_TOKENS, Settings
from stepscore_export.families.base import DecoderConfig

CONTEXT = "bench.json"
"""File of the scratch folder that tells parts what they measure."""


@dataclass(frozen=True, slots=True)
class Text:
    """Token ids of the sample of best-of-8 solutions, and what it is."""

    sample: str
    sequences: Sequence[Tokens]

    @property
    def num_tokens(self) -> int:
        """Return the number of input tokens."""
        return sum(map(len, self.sequences))


@dataclass(frozen=True, slots=True)
class Bench:
    """The shape to measure, the device, and a folder that all parts of a run share."""

    scratch: Path
    shape: DecoderConfig
    device: Provider
    quick: bool

    @classmethod
    def read(cls, scratch: Path) -> Bench:
        """Return what `write` wrote to a folder."""
        fields = json.loads((scratch / CONTEXT).read_text())
        return cls(
            scratch,
            msgspec.convert(fields["shape"], DecoderConfig),
            Provider(fields["device"]),
            fields["quick"],
        )

    def write(self) -> None:
        """Write it for the processes of the parts."""
        fields = {"shape": msgspec.to_builtins(self.shape), "device": self.device.value, "quick": self.quick}
        (self.scratch / CONTEXT).write_text(json.dumps(fields))

    @property
    def on_gpu(self) -> bool:
        """Return whether a GPU is measured, not the CPU in its place."""
        return self.device is Provider.CUDA

    @property
    def sizes(self) -> Sizes:
        """Return how much is run."""
        return QUICK_SIZES if self.quick else FULL

    def pair(self, form: str) -> Pair:
        """Return the hollow pair of a form, written at the first request."""
        return _hollow_pair(self.scratch / form.replace(" ", "-"), self.shape, form)

    def checkpoint(self) -> Path:
        """Return a hollow checkpoint."""
        folder = self.scratch / "checkpoint"
        if not folder.is_dir():
            write_hollow_checkpoint(folder, self.shape)
        return folder

    def text(self) -> Text:
        """Return the sample of best-of-8 solutions, chosen once; random ids without the shared data."""
        count = self.sizes.text_sequences
        if SHARED_DATA is None:
            ids = self.random(count * self.sizes.sequence_tokens)
            return Text("random token ids: the shared data is not here", ids)
        path = self.scratch / "text.npz"
        if not path.exists():
            encoder = _hollow_pair(self.scratch / "encoder", QUICK, CODED).encoder()
            chosen = best_of_8(encoder, math.ceil(count / 8))
            np.savez(path, np.array(chosen.sample), *chosen.sequences[:count])
        with np.load(path) as arrays:
            sample, *ids = (arrays[f"arr_{index}"] for index in range(len(arrays.files)))
        return Text(str(sample), ids)

    def random(self, num_tokens: int) -> list[Tokens]:
        """Return sequences of random ids without a common prefix."""
        rng, length = np.random.default_rng(0), self.sizes.sequence_tokens
        return [rng.integers(0, self.shape.vocab_size, length) for _ in range(num_tokens // length)]

    def settings(
        self, manifest: Manifest, residency: Residency, window_tokens: int = WINDOW_TOKENS
    ) -> Settings:
        """Return the settings of a window; `partial` keeps half of the stages."""
        return Settings(
            residency,
            min(CUDA_BATCH_TOKENS, window_tokens),
            window_tokens,
            CUDA_HEAD_ROWS,
            resident_stages=len(stage_sizes(manifest)) // 2 if residency is Residency.PARTIAL else 0,
            on_gpu=self.on_gpu,
            materializes_scores=not self.on_gpu,
        )

    def peak_mb(self) -> AbstractContextManager[list[int]]:
        """Sample the memory of the GPU above that at the start, or the process's on the CPU."""
        return gpu_peak_mb() if self.on_gpu else sampled_peak(lambda: status_mb("VmRSS"))


def speed_of(num_tokens: int, seconds: Sequence[float]) -> dict[str, float]:
    """Return median, slowest and fastest tokens/s."""
    return rounded(rate(num_tokens, seconds))


def pass_seconds(
    engine: Engine, sequences: Sequence[Tokens], settings: Settings, repeats: int, *, share: bool = True
) -> list[float]:
    """Score the sequences over and over; return the seconds of `repeats` passes after one to warm up.

    As in `Scorer` a window is planned and prepared while the one before it runs.
    """
    windows = list(fill_windows(sequences, settings.window_tokens, len))

    def prepared() -> Iterator[list[Batch]]:
        for window in windows * (1 + repeats):
            batches = [group.batch for group in planned(window, settings, engine.given, share=share)]
            engine.prepare(batches)
            yield batches

    ends = []
    with closing(prefetch(prepared())) as coming:
        for batches in coming:
            for _ in engine.run(batches):
                pass
            ends.append(time.perf_counter())
    of_passes = ends[len(windows) - 1 :: len(windows)]
    return [float(each) for each in np.diff(of_passes)]


def call_seconds(call: Callable[[], object], repeats: int) -> list[float]:
    """Return the seconds of `repeats` calls after one to warm up."""
    seconds = []
    for _ in range(1 + repeats):
        started = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - started)
    return seconds[1:]


def _hollow_pair(folder: Path, shape: DecoderConfig, form: str) -> Pair:
    if not (folder / "pair" / MANIFEST).exists():
        shutil.rmtree(folder, ignore_errors=True)  # of a part that was ended while it wrote
        write_hollow_pair(folder, shape, GPU_FORMS[form])
    return Pair.open(folder / "pair")
