"""Measure the share of each operator in the time of a coded int8 pair, in each form.

    make bench-products                             Qwen2.5-1.5B shape, 4 layers, 3 GB of disk, 8 minutes
    make bench-products FLAGS=--without-amx         as on a CPU with VNNI
    make bench-products FLAGS="--pair PAIR"         exported pairs, such as one of real checkpoints
    make bench-products FLAGS=--quick               a tiny model

ONNX Runtime's profile of `body` and `head` on one sequence, two threads: int8 + int8 with int8 activations,
and int8 + int4 with exact ones, merged and separate. --without-amx has the kernel deny AMX to this process,
so that one machine shows both: shares depend on how fast integer GEMMs are.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.support.amx import restart_without_amx
from benchmarks.support.machine import cpu_features, integer_unit
from benchmarks.support.options import benchmark_parser
from benchmarks.support.profiles import of_stages, profiled, shares
from benchmarks.support.results import write_result
from benchmarks.support.shapes import QUICK, QWEN_1_5B
from testing.checkpoints import write_checkpoint

from stepscore.artifact.pair import Pair
from stepscore.batching.batch import pack
from stepscore.engine.base import EngineOptions
from stepscore.engine.ort.engine import OrtEngine
from stepscore.enums import Activations, Precision, Products
from stepscore_export.families.base import DecoderConfig
from stepscore_export.options import ExportOptions
from stepscore_export.pipeline.export import export_pair
from stepscore_export.validation.texts import NO_TEXTS

THREADS = 2
HEAD_ROWS = 512
PROFILED = (
    ExportOptions(Precision.INT8, activations=Activations.INT8),
    ExportOptions(Precision.INT8, products=Products.MERGED),
    ExportOptions(Precision.INT8, products=Products.SEPARATE),
)


def main() -> None:
    """Profile the forms; write results/products_UNIT.json, named by the CPU's integer GEMM instructions."""
    parser = benchmark_parser(__doc__)
    parser.add_argument("--without-amx", action="store_true", help="measure as on a CPU with VNNI only")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--repeats", type=int, help="runs of each form (default: 5, with --quick 1)")
    parser.add_argument("--pair", type=Path, nargs="*", help="profile these pairs of the same shape")
    options = parser.parse_args()
    repeats = options.repeats or (1 if options.quick else 5)
    if options.without_amx:
        restart_without_amx()
    with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
        pairs = options.pair or _exported(
            Path(scratch), QUICK if options.quick else QWEN_1_5B, options.layers
        )
        rows = [_measure(pair, Path(scratch), options.tokens, repeats) for pair in pairs]
    result = {
        "quick": options.quick,
        "tokens": options.tokens,
        "threads": THREADS,
        "repeats": repeats,
        "rows": rows,
    }
    name = f"products_{integer_unit(cpu_features(), amx=not options.without_amx).lower()}"
    name += "_real" if options.pair else ""
    print(json.dumps(result, indent=2), file=sys.stderr)
    print(write_result(name, result, quick=options.quick))


def _exported(scratch: Path, full: DecoderConfig, layers: int) -> Iterator[Path]:
    """Yield a pair of each form, one at a time; the models are half a percent apart."""
    shape = replace(full, num_hidden_layers=layers)
    models = [
        write_checkpoint(scratch / name, shape, seed=1, dtype="bfloat16", perturb=perturb)
        for name, perturb in (("policy", 0.005), ("reference", 0.0))
    ]
    for options in PROFILED:
        yield export_pair(*models, scratch / "pair", options, calibration=NO_TEXTS, force=True).path


def _measure(path: Path, scratch: Path, tokens: int, repeats: int) -> dict[str, Any]:
    manifest = Pair.open(path).manifest
    assert manifest.difference is not None
    with profiled(scratch) as kernels:
        seconds = _run(path, tokens, repeats)
    return {
        "base": manifest.precision,
        "difference": manifest.difference.precision,
        "activations": manifest.difference.activations,
        "products": manifest.difference.products,
        "layers": manifest.architecture.num_hidden_layers,
        "hidden_size": manifest.architecture.hidden_size,
        "seconds": round(min(seconds), 4),
        "pair_tokens_per_second": round(tokens / min(seconds), 1),
        "shares": {
            "body": shares(of_stages(kernels, "body")),
            "head": shares(of_stages(kernels, "head")),
            "both": shares(of_stages(kernels, "body", "head")),
        },
    }


def _run(pair: Path, tokens: int, repeats: int) -> list[float]:
    opened = Pair.open(pair)
    vocab_size = opened.manifest.architecture.vocab_size
    engine = OrtEngine(opened, EngineOptions(threads=THREADS, head_rows=HEAD_ROWS))
    batch = pack([np.random.default_rng(0).integers(0, vocab_size, tokens)], [0])
    list(engine.run([batch]))  # warm-up: the arena grows
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        list(engine.run([batch]))
        seconds.append(time.perf_counter() - started)
    engine.close()
    return seconds


if __name__ == "__main__":
    main()
