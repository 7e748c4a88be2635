"""Compare the two exporters: memory and time of an export, memory and speed of the pair.

    make bench-exporters                  Qwen2.5-1.5B shape, 4 layers, fp32; 8 GB of disk, 10 minutes
    make bench-exporters FLAGS=--quick    a tiny model

Memory is the peak resident set (VmHWM) of a separate process, mapped pages included. For speed the two pairs
alternate on the same solutions, run as `Scorer` runs them.
"""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.peers.contender import Checkpoints
from benchmarks.peers.stepscore_pair import StepscorePair
from benchmarks.residency import BATCH_TOKENS, THREADS
from benchmarks.support.machine import status_mb
from benchmarks.support.options import add_child, add_shape, benchmark_parser, chosen_shape
from benchmarks.support.rates import ratio_error, rounded
from benchmarks.support.results import logged, measured_in_child, write_result
from benchmarks.support.shapes import ModelShape, write_models
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
EXPORTERS, RESIDENCY = "benchmarks.exporter_comparison", "benchmarks.residency"


def main() -> None:
    """Export with both, score with both; write results/exporters.json."""
    parser = benchmark_parser(__doc__)
    add_shape(parser, ModelShape.QWEN_1_5B, layers=4)
    add_child(parser)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(_export(*options.child)))
        return
    config = chosen_shape(options).with_layers(options.layers)
    with tempfile.TemporaryDirectory(dir=options.scratch) as folder:
        models = write_models(Path(folder), config)
        pairs = {exporter: Path(folder) / exporter for exporter in Exporter}
        exports, peaks = [], []
        for exporter, pair in pairs.items():
            exports.append(logged(measured_in_child(EXPORTERS, models.scratch, exporter, pair)))
            for residency in residencies(Pair.open(pair).manifest):
                row = measured_in_child(RESIDENCY, pair, residency)
                peaks.append(logged({"exporter": exporter, **row}))
        encoder = Pair.open(pairs[Exporter.STEPSCORE]).encoder()
        workloads = [solution(encoder, config.vocab_size, SOLUTION_TOKENS), best_of_8(encoder, 1)]
        speeds = [logged(row) for each in workloads for row in _speeds(models, pairs, each, options.repeats)]
    result = {
        "quick": options.quick,
        "layers": options.layers,
        "threads": THREADS,
        "batch_tokens": BATCH_TOKENS,
        "exports": exports,
        "peaks": peaks,
        "speeds": speeds,
    }
    print(write_result("exporters", result, quick=options.quick))


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


def _speeds(
    models: Checkpoints, pairs: dict[Exporter, Path], workload: Workload, repeats: int
) -> list[dict[str, Any]]:
    contenders = [StepscorePair(f"fp32, {exporter}", pair, THREADS) for exporter, pair in pairs.items()]
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


if __name__ == "__main__":
    main()
