"""Measure memory and time of a pair of the real size, 2 x 7.6 B parameters: its export and its scoring.

    make bench-full-size                    46 GB of disk, about 75 minutes on two cores
    make bench-full-size FLAGS="--layers 4" fewer layers, to see what depends on depth
    make bench-full-size FLAGS=--quick      a tiny model

Checkpoints of Qwen2.5-7B's shape are made from a seed (bf16, the policy half a percent off) and removed
afterwards. Each step is a separate process; its figures are the peak resident set (VmHWM, mapped pages
included; the anonymous part separately, sampled), the estimate made before, and seconds.

    export at int8 + int4 differences, blocks of 64 (blocks of 32, the default, need 1.3 GB more)
    score with all weights resident, and one layer at a time
    score bf16 weights in fp32 arithmetic, one layer at a time: the reference is used as both models to save
    disk, so every reward has to be exactly zero
"""

from __future__ import annotations

import json
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.support.machine import status_mb
from benchmarks.support.options import add_child, benchmark_parser
from benchmarks.support.results import logged, measured_in_child, write_result
from benchmarks.support.shapes import QUICK, QWEN_7B, write_models
from benchmarks.support.workloads import BEST_OF_8, opening, text_of

from stepscore.artifact.pair import Pair
from stepscore.batching.planner import plan
from stepscore.engine.base import EngineOptions
from stepscore.engine.ort.engine import OrtEngine
from stepscore.enums import Coding, DifferencePrecision, Precision, Products, Residency
from stepscore.memory.estimate import estimate
from stepscore.memory.fit import fit_settings
from stepscore.memory.peak import PeakLoad
from stepscore_export.families.base import DecoderConfig
from stepscore_export.options import ExportOptions
from stepscore_export.pipeline.export import export_pair
from stepscore_export.pipeline.plan import open_plan
from stepscore_export.validation.texts import NO_TEXTS, Texts, bundled_texts

CODED = ExportOptions(
    Precision.INT8,
    coding=Coding.DIFFERENCE,
    difference_precision=DifferencePrecision.INT4,
    products=Products.MERGED,
    block_size=64,
)
PLAIN = ExportOptions(Precision.BF16)
ONE_TEXT = Texts(None, bundled_texts().records[:1])  # fidelity of bf16 storage is not measured here
EXPORTS = {
    "coded": (CODED, bundled_texts(), NO_TEXTS),
    "plain": (PLAIN, ONE_TEXT, NO_TEXTS),
    "default": (ExportOptions(), ONE_TEXT, None),
    "default, not calibrated": (ExportOptions(), ONE_TEXT, NO_TEXTS),
}
"""Options, texts for the fidelity and for the calibration of each export (None: the bundled ones)."""
TOKENS = 2048


def main() -> None:
    """Run the steps; write results/full_size.json."""
    parser = benchmark_parser(__doc__)
    add_child(parser)
    parser.add_argument("--layers", type=int, default=QWEN_7B.num_hidden_layers)
    parser.add_argument("--models", type=Path, help="use the checkpoints in this folder: policy, reference")
    parser.add_argument("--tokens", type=int, default=TOKENS)
    parser.add_argument(
        "--export-only", action="store_true", help="export the default form, with and without calibration"
    )
    options = parser.parse_args()
    if options.child:
        kind, *rest = options.child
        with _anonymous_peak() as peak:
            row = {"export": _export, "score": _score}[kind](*rest)
        print(json.dumps({**row, "anonymous_peak_mb": peak[0]}))
        return
    shape = QUICK if options.quick else replace(QWEN_7B, num_hidden_layers=options.layers)
    layers = shape.num_hidden_layers
    with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
        rows = _steps(Path(scratch), options.models, options.tokens, shape, export_only=options.export_only)
    name = "full_size" if layers == QWEN_7B.num_hidden_layers else f"full_size_{layers}_layers"
    name += "_export" * options.export_only
    text = text_of(BEST_OF_8)
    result = {"quick": options.quick, "tokens": options.tokens, "text": text, "layers": layers, "rows": rows}
    print(write_result(name, result, quick=options.quick))


def _steps(
    scratch: Path, given: Path | None, tokens: int, shape: DecoderConfig, *, export_only: bool
) -> list[dict[str, Any]]:
    models = given or scratch
    if given is None:
        write_models(models, shape)
    rows = []

    def step(name: str, *arguments: object) -> None:
        rows.append(logged({"step": name, **measured_in_child("benchmarks.full_size", *arguments)}))

    policy, reference, pair = models / "policy", models / "reference", scratch / "pair"
    if export_only:
        for form in ("default", "default, not calibrated"):
            step(f"export {form}", "export", policy, reference, pair, form)
            shutil.rmtree(pair)
        return rows
    step("export int8 + int4", "export", policy, reference, pair, "coded")
    for residency in (Residency.RESIDENT, Residency.STREAM):
        step(f"score int8 + int4, {residency}", "score", pair, residency, tokens)
    shutil.rmtree(pair)
    if given is None:
        shutil.rmtree(policy)
    step("export bf16", "export", reference, reference, pair, "plain")
    step("score bf16, stream", "score", pair, Residency.STREAM, tokens)
    return rows


@contextmanager
def _anonymous_peak() -> Iterator[list[int]]:
    """Sample the anonymous part of the resident set, MB: mapped pages the kernel can reclaim."""
    peak, done = [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.05):
            peak[0] = max(peak[0], status_mb("RssAnon"))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    yield peak
    done.set()
    watcher.join()


def _export(policy: str, reference: str, target: str, form: str) -> dict[str, Any]:
    options, texts, calibration = EXPORTS[form]
    with open_plan(policy, reference, options, calibration=calibration) as plan:
        expected = plan.needs
    started = time.perf_counter()
    pair = export_pair(policy, reference, target, options, texts=texts, calibration=calibration)
    return {
        "parameters": expected.parameters,
        "seconds": round(time.perf_counter() - started),
        "cpu_seconds": round(time.process_time()),
        "estimated_seconds": round(expected.seconds),
        "peak_mb": status_mb("VmHWM"),
        "estimated_mb": round(expected.memory_bytes / 1e6),
        "pair_gb": round(pair.num_bytes() / 1e9, 2),
        "fidelity": str(pair.manifest.fidelity),
    }


def _score(folder: str, residency: str, tokens: str) -> dict[str, Any]:
    """Score solutions of about `tokens` tokens as one window."""
    pair = Pair.open(folder)
    settings = fit_settings(pair.manifest, residency=Residency(residency), max_batch_tokens=1024)
    sequences = opening(pair.encoder(), BEST_OF_8, int(tokens)).sequences
    groups = plan(sequences, [0] * len(sequences), settings.max_batch_tokens)
    batches = [group.batch for group in groups]
    started = time.perf_counter()
    engine = OrtEngine(pair, EngineOptions(residency=settings.residency, head_rows=settings.head_rows))
    loaded = time.perf_counter()
    results = list(engine.run(batches))
    seconds = time.perf_counter() - loaded
    count = sum(map(len, sequences))
    largest = max(abs(each["policy"] - each["reference"]).max() for each in results)
    return {
        "residency": residency,
        "sequences": len(sequences),
        "tokens": count,
        "rows": sum(len(batch.input_ids) for batch in batches),
        "load_seconds": round(loaded - started, 1),
        "seconds": round(seconds, 1),
        "cpu_seconds": round(time.process_time()),
        "tokens_per_second": round(count / seconds, 2),
        "peak_mb": status_mb("VmHWM"),
        "estimated_mb": round(estimate(pair.manifest, settings, PeakLoad.of([batches])).total / 1e6),
        "largest_log_ratio": float(f"{largest:.4g}"),
    }


if __name__ == "__main__":
    main()
