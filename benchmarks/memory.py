"""Measure peak memory of an export, and of scoring one long sequence over a large vocabulary.

    make bench-memory                   Qwen2.5-1.5B shape, 12 GB of disk, 10 minutes on two cores
    make bench-memory FLAGS=--quick     a tiny model

Checkpoints are random from a seed (bf16, the policy 1 % from the reference), made in a temporary folder and
removed. Every figure is the peak resident set (VmHWM) of a separate process, file-mapped pages included.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.support.machine import status_mb
from benchmarks.support.options import add_child, benchmark_parser
from benchmarks.support.results import logged, measured_in_child, write_result
from benchmarks.support.shapes import QUICK, QWEN_1_5B
from testing.checkpoints import TINY, write_checkpoint

from stepscore.artifact.pair import Pair
from stepscore.engine.ort.engine import OrtEngine
from stepscore.enums import Precision
from stepscore_export.families.base import DecoderConfig
from stepscore_export.options import ExportOptions
from stepscore_export.pipeline.export import export_pair
from stepscore_export.pipeline.plan import open_plan

LONG = replace(TINY, hidden_size=256, intermediate_size=512, vocab_size=151_936, max_position_embeddings=4096)
QUICK_LONG = replace(LONG, hidden_size=64, intermediate_size=96)
LONG_TOKENS = 4096
MODULE = "benchmarks.memory"


def main() -> None:
    """Run the cases; write results/memory_score.json and results/memory_export.json."""
    parser = benchmark_parser(__doc__)
    add_child(parser)
    parser.add_argument("--only", choices=["export", "score"])
    parser.add_argument("--precision", nargs="*", help="export these (default: all, with --quick int8)")
    options = parser.parse_args()
    if options.child:
        kind, *rest = options.child
        print(json.dumps({"export": _export_here, "score": _score_here}[kind](*rest)))
        return
    full, long = (QUICK, QUICK_LONG) if options.quick else (QWEN_1_5B, LONG)
    with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
        if options.only != "export":
            rows = _scoring(Path(scratch), long)
            print(write_result("memory_score", {"quick": options.quick, "rows": rows}, quick=options.quick))
        if options.only != "score":
            usual = ["int8"] if options.quick else ["int8", "int4", "fp16", "fp32"]
            exports = _exports(Path(scratch), full, options.precision or usual)
            result = {"quick": options.quick, "rows": exports}
            print(write_result("memory_export", result, quick=options.quick))


def _exports(scratch: Path, full: DecoderConfig, precisions: list[str]) -> list[dict[str, Any]]:
    rows = []
    for layers in (full.num_hidden_layers, full.num_hidden_layers // 2):
        folders = _checkpoints(scratch / f"{layers}-layers", replace(full, num_hidden_layers=layers))
        for precision in precisions:
            rows.append(logged(measured_in_child(MODULE, "export", *folders, precision, scratch / "pair")))
        for folder in folders:
            shutil.rmtree(folder)
    return rows


def _scoring(scratch: Path, shape: DecoderConfig) -> list[dict[str, Any]]:
    folders = _checkpoints(scratch / "long", shape)
    rows = []
    for precision in (Precision.FP32, Precision.INT8):
        target = scratch / f"long-{precision}"
        export_pair(*folders, target, ExportOptions(precision=precision))
        rows.append(logged({"precision": precision, **measured_in_child(MODULE, "score", target)}))
    return rows


def _checkpoints(folder: Path, shape: DecoderConfig) -> tuple[Path, Path]:
    reference = write_checkpoint(folder / "reference", shape, seed=1, dtype="bfloat16", shards=2)
    policy = write_checkpoint(folder / "policy", shape, seed=1, dtype="bfloat16", shards=2, perturb=0.01)
    return policy, reference


def _export_here(policy: str, reference: str, precision: str, target: str) -> dict[str, Any]:
    options = ExportOptions(precision=Precision(precision))
    with open_plan(policy, reference, options) as plan:
        expected = plan.needs
        layers = plan.checkpoints["policy"].config.num_hidden_layers
    started = time.perf_counter()
    pair = export_pair(policy, reference, target, options, force=True)
    return {
        "precision": precision,
        "layers": layers,
        "parameters_of_both": expected.parameters,
        "pair_bytes": pair.num_bytes(),
        "seconds": round(time.perf_counter() - started, 1),
        "peak_mb": status_mb("VmHWM"),
        "estimated_mb": round(expected.memory_bytes / 1e6),
    }


def _score_here(folder: str) -> dict[str, Any]:
    pair = Pair.open(folder)
    engine = OrtEngine(pair)
    token_ids = np.random.default_rng(0).integers(0, pair.manifest.architecture.vocab_size, LONG_TOKENS)
    loaded = status_mb("VmRSS")
    engine.logprobs([token_ids[:64]])  # mapped weights become resident at their first use
    warm = status_mb("VmRSS")
    engine.logprobs([token_ids])
    peak = status_mb("VmHWM")
    return {
        "vocab_size": pair.manifest.architecture.vocab_size,
        "hidden_size": pair.manifest.architecture.hidden_size,
        "tokens": LONG_TOKENS,
        "peak_mb": peak,
        "above_loaded_mb": peak - loaded,
        "above_warm_mb": peak - warm,
    }


if __name__ == "__main__":
    main()
