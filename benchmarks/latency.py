"""Measure seconds per solution of 64 to 4,096 tokens, loading a pair, and a command from start to answer.

    make bench-latency                            Qwen2.5-0.5B shape, all layers
    make bench-latency FLAGS="--shape 1.5b --layers 8 --peers"
    make bench-latency FLAGS="--provider cuda --peers"
    make bench-latency FLAGS=--quick              a tiny model, to see that it works

One sequence of random ids at a time, log-probs of all tokens of both models; p50, p90 and p99 of n repeats,
fewer for long sequences (n is in the result). A cold start is a new process of `stepscore score PAIR
--problem ...`, from its start to its end, with the weights in the page cache.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from benchmarks.peers.contender import Checkpoints, Contender, Tokens
from benchmarks.peers.llama_cpp import LlamaCpp
from benchmarks.peers.optimum_ort import OptimumOrt
from benchmarks.peers.stepscore_pair import StepscorePair
from benchmarks.peers.transformers_card import TorchPrecision, TransformersCard
from benchmarks.support.forms import FORMS
from benchmarks.support.machine import gpu_used_mb, provider_facts
from benchmarks.support.options import (
    add_provider,
    add_shape,
    benchmark_parser,
    chosen_shape,
    measured_provider,
)
from benchmarks.support.rates import percentiles
from benchmarks.support.results import logged, write_result
from benchmarks.support.shapes import ModelShape, shape_facts, write_models
from benchmarks.support.worker import Skipped, Worker, released_mb, start

from stepscore.enums import Provider
from stepscore_export.pipeline.export import export_pair
from stepscore_export.validation.texts import NO_TEXTS

LENGTHS = (64, 128, 256, 512, 1024, 2048, 4096)
QUICK_LENGTHS = (64, 128, 256)
LONG_REPEATS_TOKENS = 512
COLD_STARTS = 5
QUESTION = (
    "--problem",
    "Ann has 3 bags of 4 pens. How many pens?",
    "--step",
    "3 * 4 = 12.",
    "--step",
    "So 12.",
)


def main() -> None:
    """Measure one shape; write results/latency_SHAPE.json, on a GPU latency_SHAPE_cuda.json."""
    options = _options()
    provider = measured_provider(options)
    shape = chosen_shape(options)
    config = shape.with_layers(options.layers)
    repeats = 3 if options.quick else options.repeats
    with tempfile.TemporaryDirectory(dir=options.scratch) as folder:
        models = write_models(Path(folder), config)
        sequences = _sequences(options.quick, config.vocab_size)
        rows: list[dict[str, Any]] = []
        for form, stored in FORMS[provider].items():
            pair = models.scratch / "pair"
            export_pair(models.policy, models.reference, pair, stored, calibration=NO_TEXTS, force=True)
            row = _measured(StepscorePair(form, pair, options.threads), provider, models, sequences, repeats)
            cold_starts = _cold_starts(pair, options.threads, options.quick)
            rows.append(logged({**row, "cold_start_seconds": cold_starts}))
        for peer in _peers(provider, options.threads) if options.peers else ():
            rows.append(logged(_measured(peer, provider, models, sequences, repeats)))
    result = {
        "quick": options.quick,
        **provider_facts(provider),
        "threads": options.threads,
        **shape_facts(shape, config),
        "rows": rows,
    }
    name = f"latency_{shape}" + ("_cuda" if provider is Provider.CUDA else "")
    print(write_result(name, result, quick=options.quick))


def _options() -> argparse.Namespace:
    parser = benchmark_parser(__doc__)
    add_shape(parser, ModelShape.QWEN_0_5B, layers=None)
    parser.add_argument("--repeats", type=int, default=20, help="time sequences up to 512 tokens N times")
    parser.add_argument("--threads", type=int, default=2)
    add_provider(parser)
    parser.add_argument(
        "--peers", action="store_true", help="measure transformers, llama.cpp and optimum too"
    )
    return parser.parse_args()


def _peers(provider: Provider, threads: int) -> list[Contender]:
    if provider is Provider.CUDA:
        in_turn = (TorchPrecision.FP16, TorchPrecision.BF16, TorchPrecision.INT8, TorchPrecision.NF4)
        return [TransformersCard(threads, each, device=provider.value) for each in in_turn]
    return [TransformersCard(threads), LlamaCpp(threads, max(LENGTHS)), OptimumOrt(threads)]


def _sequences(quick: bool, vocab_size: int) -> list[Tokens]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, vocab_size, length) for length in (QUICK_LENGTHS if quick else LENGTHS)]


def repeats_of(length: int, repeats: int) -> int:
    """Return how often to time a length: fewer times in proportion for long sequences, at least five.

    >>> [repeats_of(length, 20) for length in (64, 512, 1024, 4096)]
    [20, 20, 10, 5]
    """
    return max(min(repeats, 5), min(repeats, repeats * LONG_REPEATS_TOKENS // length))


def _measured(
    contender: Contender, provider: Provider, models: Checkpoints, sequences: list[Tokens], repeats: int
) -> dict[str, Any]:
    worker = start(contender, models, sequences[:1], contender.threads)
    if isinstance(worker, Skipped):
        return {"peer": worker.name, "skipped": worker.reason}
    try:
        lengths = list(_lengths(worker, sequences, repeats))
        on_gpu = provider is Provider.CUDA
        return {
            "peer": contender.name,
            "load_seconds": round(worker.load_seconds, 3),
            "lengths": lengths,
            "peak_mb": released_mb(worker, gpu_used_mb) if on_gpu else worker.peak_mb(),
        }
    finally:
        worker.close()


def _lengths(worker: Worker, sequences: list[Tokens], repeats: int) -> Iterator[dict[str, Any]]:
    for sequence in sequences:
        worker.run([sequence])  # warm-up: allocates the memory of this length
        count = repeats_of(len(sequence), repeats)
        seconds = [worker.run([sequence]).seconds for _ in range(count)]
        yield {"tokens": len(sequence), "n": count, **percentiles(seconds)}


def _cold_starts(pair: Path, threads: int, quick: bool) -> dict[str, Any]:
    """Return the seconds of whole processes that score one solution."""
    stepscore = Path(sys.executable).with_name("stepscore")
    command = [str(stepscore), "score", str(pair), *QUESTION, "--threads", str(threads)]
    seconds = []
    for _ in range(1 if quick else COLD_STARTS):
        started = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        seconds.append(round(time.perf_counter() - started, 3))
    return {"median": median(seconds), "slowest": max(seconds), "fastest": min(seconds), "n": len(seconds)}


if __name__ == "__main__":
    main()
