"""The two exporters beside each other: what an export takes, what a pair takes, how fast it is.

    make bench-exporters                  Qwen2.5-1.5B shape, 4 layers, fp32; 8 GB of disk, 10 minutes
    make bench-exporters FLAGS=--quick    a tiny model

Every figure of memory is the peak resident set (VmHWM) of a process of its own, mapped pages included. For
speed the two pairs take turns on the same real solutions, as `Scorer` runs them.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.peers.contender import Models
from benchmarks.peers.ours import Ours
from benchmarks.residency import BATCH_TOKENS, THREADS
from benchmarks.support.machine import QUICK_RESULTS, RESULTS, status_mb, write_result
from benchmarks.support.rates import ratio_error, rounded
from benchmarks.support.shapes import Shape, write_models
from benchmarks.support.worker import Turns, take_turns
from benchmarks.support.workloads import Workload, best_of_8, solution

from stepscore.artifact.pair import Pair
from stepscore.bench import rate
from stepscore.enums import Exporter, Precision
from stepscore.memory.settings import residencies
from stepscore_export.options import ExportOptions
from stepscore_export.pipeline.export import export_pair
from stepscore_export.pipeline.plan import open_plan

SOLUTION_TOKENS = 512


def main() -> None:
    """Export with both, score with both; write results/exporters.json."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--shape", type=Shape, choices=list(Shape), default=Shape.QWEN_1_5B)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--scratch", type=Path, help="where checkpoints and pairs go")
    parser.add_argument("--child", nargs="*", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(_export(*options.child)))
        return
    config = (Shape.QUICK if options.quick else options.shape).with_layers(options.layers)
    with tempfile.TemporaryDirectory(dir=options.scratch) as folder:
        models = write_models(Path(folder), config)
        pairs = {exporter: Path(folder) / exporter for exporter in Exporter}
        exports, peaks = [], []
        for exporter, pair in pairs.items():
            exports.append(_logged(_child("exporters", str(models.scratch), exporter, str(pair))))
            for residency in residencies(Pair.open(pair).manifest):
                row = _child("residency", str(pair), residency)
                peaks.append(_logged({"exporter": exporter, **row}))
        encoder = Pair.open(pairs[Exporter.STEPSCORE]).encoder()
        workloads = [solution(encoder, config.vocab_size, SOLUTION_TOKENS), best_of_8(encoder, 1)]
        speeds = [_logged(row) for each in workloads for row in _speeds(models, pairs, each, options.repeats)]
    result = {
        "layers": options.layers,
        "threads": THREADS,
        "batch_tokens": BATCH_TOKENS,
        "exports": exports,
        "peaks": peaks,
        "speeds": speeds,
    }
    print(write_result("exporters", result, QUICK_RESULTS if options.quick else RESULTS))


def _export(folder: str, exporter: str, output: str) -> dict[str, Any]:
    options = ExportOptions(Precision.FP32, exporter=Exporter(exporter))
    policy, reference = Path(folder) / "policy", Path(folder) / "reference"
    with open_plan(policy, reference, options) as plan:
        expected = plan.needs
    started = time.perf_counter()
    pair = export_pair(policy, reference, output, options)
    return {
        "exporter": exporter,
        "parameters_of_both": expected.parameters,
        "pair_mb": round(pair.num_bytes() / 1e6),
        "seconds": round(time.perf_counter() - started, 1),
        "peak_mb": status_mb("VmHWM"),
        "estimated_mb": round(expected.memory_bytes / 1e6),
    }


def _child(module: str, *arguments: str) -> dict[str, Any]:
    command = [sys.executable, "-m", f"benchmarks.{module}", "--child", *arguments]
    result: dict[str, Any] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    return result


def _speeds(
    models: Models, pairs: dict[Exporter, Path], workload: Workload, repeats: int
) -> list[dict[str, Any]]:
    contenders = [Ours(f"fp32, {exporter}", pair, THREADS) for exporter, pair in pairs.items()]
    both = take_turns(contenders, models, workload.sequences, THREADS, repeats)
    turns = [each for each in both if isinstance(each, Turns)]
    return [
        {
            **workload.facts(),
            "engine": each.name,
            "tokens_per_second": rounded(rate(workload.num_tokens, each.seconds)),
            "log_ratio_difference": ratio_error(each.logprobs, turns[0].logprobs),
            "peak_mb": each.peak_mb,
        }
        for each in turns
    ]


def _logged(row: dict[str, Any]) -> dict[str, Any]:
    print(json.dumps(row), file=sys.stderr, flush=True)
    return row


if __name__ == "__main__":
    main()
