"""How long one solution takes, from 64 to 4,096 tokens; loading a pair; a command from start to answer.

    make bench-latency                            Qwen2.5-0.5B shape, all layers
    make bench-latency FLAGS="--shape 1.5b --layers 8 --peers"
    make bench-latency FLAGS="--provider cuda --peers"
    make bench-latency FLAGS=--quick              a tiny model: does it all work

One sequence of random ids a time, log-probs of all tokens of both models; p50, p90 and p99 of n repeats,
fewer for long ones (n is in the result). A cold start is a new process of `stepscore score PAIR
--problem ...`, from its start to its end; weights are in the page cache, as for any process but the first.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from benchmarks.peers.contender import Contender, Models, Tokens
from benchmarks.peers.llama_cpp import LlamaCpp
from benchmarks.peers.optimum_ort import OptimumOrt
from benchmarks.peers.ours import Ours
from benchmarks.peers.transformers_card import TorchPrecision, TransformersCard
from benchmarks.support.forms import FORMS
from benchmarks.support.machine import (
    QUICK_RESULTS,
    RESULTS,
    add_provider,
    gpu_used_mb,
    measured_provider,
    provider_facts,
    write_result,
)
from benchmarks.support.rates import percentiles
from benchmarks.support.shapes import Shape, write_models
from benchmarks.support.worker import Skipped, Worker, given_back_mb, start

from stepscore.enums import Provider
from stepscore_export.pipeline.export import export_pair

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
    shape = Shape.QUICK if options.quick else options.shape
    config = shape.with_layers(options.layers)
    repeats = 3 if options.quick else options.repeats
    with tempfile.TemporaryDirectory(dir=options.scratch) as folder:
        models = write_models(Path(folder), config)
        sequences = _sequences(options.quick, config.vocab_size)
        rows: list[dict[str, Any]] = []
        for form, stored in FORMS[provider].items():
            pair = models.scratch / "pair"
            export_pair(models.policy, models.reference, pair, stored, force=True)
            row = _measured(Ours(form, pair, options.threads), provider, models, sequences, repeats)
            rows.append({**row, "cold_start_seconds": _cold_starts(pair, options.threads, options.quick)})
            _log(rows[-1])
        for peer in _peers(provider, options.threads) if options.peers else ():
            rows.append(_measured(peer, provider, models, sequences, repeats))
            _log(rows[-1])
    result = {
        "quick": options.quick,
        **provider_facts(provider),
        "threads": options.threads,
        "shape": {"name": shape.value, **asdict(config)},
        "all_layers": shape.config.num_hidden_layers,
        "rows": rows,
    }
    name = f"latency_{shape}" + ("_cuda" if provider is Provider.CUDA else "")
    print(write_result(name, result, QUICK_RESULTS if options.quick else RESULTS))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a tiny model, few repeats")
    parser.add_argument("--shape", type=Shape, choices=list(Shape), default=Shape.QWEN_0_5B)
    parser.add_argument("--layers", type=int, help="fewer layers than the shape has")
    parser.add_argument("--repeats", type=int, default=20, help="of sequences up to 512 tokens")
    parser.add_argument("--threads", type=int, default=2)
    add_provider(parser)
    parser.add_argument("--peers", action="store_true", help="transformers, llama.cpp and optimum, too")
    parser.add_argument("--scratch", type=Path, help="where checkpoints go (default: the temporary folder)")
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
    """Return how often a length is timed: long sequences in proportion less often, but five times.

    >>> [repeats_of(length, 20) for length in (64, 512, 1024, 4096)]
    [20, 20, 10, 5]
    """
    return max(min(repeats, 5), min(repeats, repeats * LONG_REPEATS_TOKENS // length))


def _measured(
    contender: Contender, provider: Provider, models: Models, sequences: list[Tokens], repeats: int
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
            "peak_mb": given_back_mb(worker, gpu_used_mb) if on_gpu else worker.peak_mb(),
        }
    finally:
        worker.close()


def _lengths(worker: Worker, sequences: list[Tokens], repeats: int) -> Iterator[dict[str, Any]]:
    for sequence in sequences:
        worker.run([sequence])  # memory of this length is there now
        count = repeats_of(len(sequence), repeats)
        seconds = [worker.run([sequence]).seconds for _ in range(count)]
        yield {"tokens": len(sequence), "n": count, **percentiles(seconds)}


def _cold_starts(pair: Path, threads: int, quick: bool) -> dict[str, Any]:
    """Return the seconds of whole processes that answer one question."""
    stepscore = Path(sys.executable).with_name("stepscore")
    command = [str(stepscore), "score", str(pair), *QUESTION, "--threads", str(threads)]
    seconds = []
    for _ in range(1 if quick else COLD_STARTS):
        started = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        seconds.append(round(time.perf_counter() - started, 3))
    return {"median": median(seconds), "slowest": max(seconds), "fastest": min(seconds), "n": len(seconds)}


def _log(row: dict[str, Any]) -> None:
    print(json.dumps(row), file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
