"""Measure peak memory and speed of each residency (resident, alternate, stream), by form.

    make bench-residency                  Qwen2.5-1.5B shape, 4 layers, 8 GB of disk, 25 minutes on two cores
    make bench-residency FLAGS="--provider cuda"
    make bench-residency FLAGS=--quick    a tiny model

Every row of `peaks` is a separate process that scores solutions as one window: its peak resident set
(VmHWM, mapped pages included; with CUDA the GPU memory that the driver reports) and the estimate made before
(stepscore.memory.estimate). In `windows` a resident and a streaming engine alternate over windows of several
sizes, which shows the cost of reading all weights per window.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.support.forms import BF16, FORMS, default_form
from benchmarks.support.machine import gpu_peak_mb, provider_facts, status_mb
from benchmarks.support.options import (
    add_child,
    add_provider,
    add_shape,
    benchmark_parser,
    chosen_shape,
    measured_provider,
)
from benchmarks.support.results import logged, measured_in_child, write_result
from benchmarks.support.shapes import ModelShape, shape_facts, write_models
from benchmarks.support.workloads import opening, text_of

from stepscore.artifact.pair import Pair
from stepscore.batching.batch import Batch
from stepscore.batching.planner import plan
from stepscore.engine.base import EngineOptions
from stepscore.engine.ort.engine import OrtEngine
from stepscore.enums import Precision, Provider, Residency, Target
from stepscore.memory.estimate import estimate
from stepscore.memory.fit import fit_settings
from stepscore.memory.peak import PeakLoad
from stepscore.memory.settings import Settings
from stepscore_export.options import ExportOptions
from stepscore_export.pipeline.export import export_pair
from stepscore_export.validation.texts import NO_TEXTS

STORED = {
    Provider.CPU: {**FORMS[Provider.CPU], BF16: ExportOptions(Precision.BF16)},
    Provider.CUDA: FORMS[Provider.CUDA],
}
TEXT = "math_best_of_8"
PEAK_TOKENS = 4096
WINDOWS = (512, 1024, 2048, 4096)
BATCH_TOKENS = 1024
THREADS = 2


def main() -> None:
    """Run both parts; write results/residency.json, on a GPU residency_cuda.json."""
    parser = benchmark_parser(__doc__)
    add_shape(parser, ModelShape.QWEN_1_5B, layers=4)
    add_child(parser)
    parser.add_argument("--repeats", type=int, default=3)
    add_provider(parser)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(_peak(*options.child)))
        return
    provider = measured_provider(options)
    shape = chosen_shape(options)
    config = shape.with_layers(options.layers)
    with tempfile.TemporaryDirectory(dir=options.scratch) as folder:
        models = write_models(Path(folder), config)
        peaks: list[dict[str, Any]] = []
        windows: list[dict[str, Any]] = []
        for name, form in STORED[provider].items():
            pair = export_pair(
                models.policy, models.reference, Path(folder) / "pair", form, calibration=NO_TEXTS, force=True
            )
            peaks += [logged({"form": name, **row}) for row in _peaks(pair)]
            if name == default_form(provider):
                windows += [logged({"form": name, **row}) for row in _windows(pair, options.repeats)]
    result = {
        "quick": options.quick,
        "text": text_of(TEXT),
        **shape_facts(shape, config),
        "layers": options.layers,
        "threads": THREADS,
        "peaks": peaks,
        "windows": windows,
    }
    name = "residency" + ("_cuda" if provider is Provider.CUDA else "")
    print(write_result(name, provider_facts(provider) | result, quick=options.quick))


def _peaks(pair: Pair) -> Iterator[dict[str, Any]]:
    for residency in _residencies(pair):
        yield measured_in_child("benchmarks.residency", pair.path, residency)


def _residencies(pair: Pair) -> list[Residency]:
    alternate = [Residency.ALTERNATE] if len(pair.manifest.units) > 1 else []
    return [Residency.RESIDENT, *alternate, Residency.STREAM]


def _peak(folder: str, residency: str) -> dict[str, Any]:
    pair = Pair.open(folder)
    settings = fit_settings(pair.manifest, residency=Residency(residency), max_batch_tokens=BATCH_TOKENS)
    batches, tokens = _window(pair, PEAK_TOKENS)
    on_gpu = pair.manifest.target is Target.CUDA
    with gpu_peak_mb() if on_gpu else nullcontext([0]) as peak:
        engine = _engine(pair, settings)
        started = time.perf_counter()
        list(engine.run(batches))
        seconds = time.perf_counter() - started
    return {
        "residency": residency,
        "tokens": tokens,
        "tokens_per_second": round(tokens / seconds, 1),
        "peak_mb": peak[0] if on_gpu else status_mb("VmHWM"),
        "estimated_mb": round(estimate(pair.manifest, settings, PeakLoad.of([batches])).total / 1e6),
    }


def _windows(pair: Pair, repeats: int) -> Iterator[dict[str, Any]]:
    """Time a resident and a streaming engine alternately on each window; the ratio is a median of ratios."""
    chosen = [
        fit_settings(pair.manifest, residency=each, max_batch_tokens=BATCH_TOKENS)
        for each in (Residency.RESIDENT, Residency.STREAM)
    ]
    engines = [_engine(pair, settings) for settings in chosen]
    list(engines[0].run(_window(pair, 256)[0]))
    for size in WINDOWS:
        batches, tokens = _window(pair, size)
        seconds: list[list[float]] = []
        for _ in range(repeats):
            seconds.append([])
            for engine in engines:
                started = time.perf_counter()
                list(engine.run(batches))
                seconds[-1].append(time.perf_counter() - started)
        yield {
            "tokens": tokens,
            "rows": sum(len(batch.input_ids) for batch in batches),
            "resident_tokens_per_second": round(tokens / median(each[0] for each in seconds), 1),
            "stream_tokens_per_second": round(tokens / median(each[1] for each in seconds), 1),
            "stream_over_resident": round(median(resident / stream for resident, stream in seconds), 3),
            "n": repeats,
        }


def _engine(pair: Pair, settings: Settings) -> OrtEngine:
    options = EngineOptions(residency=settings.residency, threads=THREADS, head_rows=settings.head_rows)
    return OrtEngine(pair, options)


def _window(pair: Pair, tokens: int) -> tuple[list[Batch], int]:
    """Return the first solutions of about `tokens` tokens, in batches, and their number of tokens."""
    sequences = opening(pair.encoder(), TEXT, tokens).sequences
    groups = plan(sequences, [0] * len(sequences), BATCH_TOKENS)
    return [group.batch for group in groups], sum(map(len, sequences))


if __name__ == "__main__":
    main()
