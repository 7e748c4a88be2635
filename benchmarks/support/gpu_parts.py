"""Parts of the GPU benchmark: each runs in a process of its own, and returns what its line says."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

from benchmarks.support.cublas_floor import measure_floor
from benchmarks.support.gpu_bench import Bench, call_seconds, pass_seconds, speed_of
from benchmarks.support.gpu_fidelity import fidelity
from benchmarks.support.gpu_plan import TRANSFORMERS, PartName
from benchmarks.support.machine import facts as machine_facts
from benchmarks.support.machine import gpu_facts, gpu_limits

from stepscore.artifact.pair import Pair
from stepscore.engine.base import EngineOptions
from stepscore.engine.cuda.engine import CudaEngine
from stepscore.enums import Precision, Residency
from stepscore.errors import StepscoreError
from stepscore.memory.estimate import estimate
from stepscore.memory.settings import Settings

ROOT = Path(__file__).parents[2]
ERROR_LINES = 8
PADDED_BATCH = 8
Row = dict[str, Any]


def facts(bench: Bench) -> Row:
    """Return machine, versions, and the card with its limits."""
    card = {"gpu": gpu_facts() | gpu_limits()} if bench.on_gpu else {}
    return {"quick": bench.quick, "machine": machine_facts(), **card}


def floor(bench: Bench, precision: str) -> Row:
    """Measure the floor at the sizes of all windows but the largest, whose batches are no larger."""
    sizes, kind = bench.sizes, Precision(precision)
    rows = sizes.windows[:-1]
    return {"rows": measure_floor(bench.shape, bench.device, kind, rows, sizes.sustained_seconds)}


def engine(bench: Bench, form: str, residency: str) -> Row:
    """Measure a hollow pair: loading, tokens/s and memory by window, smallest first.

    `peak_mb` of a window is the peak so far. A window that fails ends the row, unless it is the first.
    """
    pair = bench.pair(form)
    settings = bench.settings(pair.manifest, Residency(residency))
    row: Row = {"stages_kept": settings.resident_stages} if settings.resident_stages else {}
    with bench.peak_mb() as peak:
        started = time.perf_counter()
        opened = _opened(bench, pair, settings)
        row |= {"load_seconds": round(time.perf_counter() - started, 2), "loaded_mb": peak[0]}
        row["windows"] = windows = []
        for tokens in bench.sizes.windows:
            fitted = bench.settings(pair.manifest, settings.residency, tokens)
            window: Row = {"tokens": tokens}
            try:
                seconds = pass_seconds(opened, bench.random(tokens), fitted, bench.sizes.repeats)
                window |= speed_of(tokens, seconds)
            except StepscoreError as error:
                if not windows:
                    raise
                windows.append(window | {"failed": error.message})
                break
            window |= {"peak_mb": peak[0], "estimated_mb": round(estimate(pair.manifest, fitted).total / 1e6)}
            windows.append(window)
        row["buffers_mb"] = round(opened.device_bytes / 1e6)
    return row


def text(bench: Bench, subject: str) -> Row:
    """Measure best-of-8 text: a resident pair with and without shared prefixes, or transformers in fp16."""
    if subject == TRANSFORMERS:
        return peer(bench, "fp16")
    sample, pair = bench.text(), bench.pair(subject)
    settings = bench.settings(pair.manifest, Residency.RESIDENT)
    row: Row = {"sample": sample.sample, "sequences": len(sample.sequences), "tokens": sample.num_tokens}
    with bench.peak_mb() as peak:
        opened = _opened(bench, pair, settings)
        for name, share in (("shared", True), ("not_shared", False)):
            repeats = bench.sizes.repeats
            seconds = pass_seconds(opened, sample.sequences, settings, repeats, share=share)
            row[name] = speed_of(sample.num_tokens, seconds)
    return row | {"peak_mb": peak[0]}


def cuda_tests(bench: Bench) -> Row:
    """Run the tests that need a GPU; return the last line of pytest."""
    if not bench.on_gpu:
        return {"skipped": "the tests need a GPU"}
    command = [sys.executable, "-m", "pytest", "-m", "cuda", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=ROOT)
    lines = (done.stdout + done.stderr).strip().splitlines()
    if done.returncode:
        raise SystemExit("\n".join(lines[-ERROR_LINES:]))
    return {"last_line": lines[-1]}


def peer(bench: Bench, precision: str) -> Row:
    """Measure transformers with random weights on the text, or bitsandbytes' linear layers in it."""
    from benchmarks.peers.transformers_gpu import by_torch, random_model  # noqa: PLC0415

    sample, folder = bench.text(), bench.checkpoint()
    row: Row = {"peer": f"transformers {precision}"}
    row |= {"sample": sample.sample, "sequences": len(sample.sequences), "tokens": sample.num_tokens}
    with bench.peak_mb() as peak:
        models = [random_model(folder, precision, bench.device) for _ in range(2)]
        row["loaded_mb"] = peak[0]
        for name, batch in (("one_at_a_time", 1), ("padded_batches_of_8", PADDED_BATCH)):
            score = partial(by_torch, models, sample.sequences, batch)
            seconds = call_seconds(score, bench.sizes.repeats)
            row[name] = speed_of(sample.num_tokens, seconds)
    return row | {"peak_mb": peak[0]}


PARTS: Mapping[PartName, Callable[..., Row]] = MappingProxyType(
    {
        PartName.FACTS: facts,
        PartName.FLOOR: floor,
        PartName.ENGINE: engine,
        PartName.TEXT: text,
        PartName.FIDELITY: fidelity,
        PartName.CUDA_TESTS: cuda_tests,
        PartName.PEER: peer,
    }
)


def _opened(bench: Bench, pair: Pair, settings: Settings) -> CudaEngine:
    options = EngineOptions(
        bench.device,
        settings.residency,
        head_rows=settings.head_rows,
        resident_stages=settings.resident_stages,
    )
    return CudaEngine(pair, options)
