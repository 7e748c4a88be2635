"""Measure tokens/s and memory of each form and residency on a GPU, next to the cuBLAS floor and PyTorch.

    make bench-gpu                       Qwen2.5-7B shape, 28 layers, about 6 minutes on one H200
    make bench-gpu FLAGS="--only floor pair --forms fp16"
    make bench-gpu FLAGS=--quick         a tiny model, to see that it works

Pairs are hollow (support/hollow.py): work and memory are real, weights and rewards are not. `windows` are
sequences of 512 random ids without shared prefixes, so a speed can be compared with the floor
(support/cublas_floor.py). `text` is a sample of best-of-8 solutions, the same token ids for every engine,
input tokens per second. PyTorch has random weights; of bitsandbytes' one layer is made, and run as often as
there are layers. `fidelity` scores the problems of the bundled pair, which is trained, in every form and with
PyTorch on the GPU: relative RMS errors of the log-ratio against fp64.

Each part is a separate process (support/gpu_parts.py). Memory is what the driver reports, sampled, less what
was used before.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from benchmarks.support.forms import CODED
from benchmarks.support.gpu_parts import MAIN_FORMS, MEASURED, PARTS, SEPARATE, SHAPE
from benchmarks.support.machine import gpu_facts
from benchmarks.support.options import add_child, benchmark_parser
from benchmarks.support.results import logged, write_result
from benchmarks.support.shapes import QUICK, QWEN_7B

from stepscore.enums import Residency

ERROR_LINES = 8


def main() -> None:
    """Run the parts; write results/gpu.json after each of them."""
    options = parsed_options()
    if options.child:
        part, scratch, *arguments = options.child
        print(json.dumps(PARTS[part](Path(scratch), *arguments)))
        return
    shape = QUICK if options.quick else QWEN_7B
    shape = replace(shape, num_hidden_layers=options.layers or shape.num_hidden_layers)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(dir=options.scratch) as folder:
        scratch = Path(folder)
        (scratch / SHAPE).write_text(json.dumps(asdict(shape)))
        result: dict[str, Any] = {"quick": options.quick, "gpu": gpu_facts(), "shape": asdict(shape)}
        result["rows"] = rows = []
        for part, *arguments in parts(options):
            if time.perf_counter() - started > options.seconds:
                row = {"part": part, "arguments": arguments, "skipped": f"after {options.seconds} seconds"}
            else:
                row = {"part": part, **_run(part, scratch, *arguments)}
            rows.append(logged(row))
            path = write_result(options.name, result, quick=options.quick, folder=options.results)
    print(path)


def parsed_options() -> argparse.Namespace:
    """Return the options of the command line."""
    parser = benchmark_parser(__doc__)
    add_child(parser)
    parser.add_argument("--layers", type=int, help="use fewer layers than the shape has")
    parser.add_argument("--only", nargs="*", choices=list(PARTS), default=list(PARTS), help="run these parts")
    parser.add_argument("--forms", nargs="*", choices=list(MEASURED), default=list(MEASURED))
    parser.add_argument("--seconds", type=float, default=3600, help="start no part after N seconds")
    parser.add_argument("--name", default="gpu", help="name the result file NAME.json")
    parser.add_argument("--results", type=Path, help="write the result to this folder")
    return parser.parse_args()


def parts(options: argparse.Namespace) -> Iterator[tuple[str, ...]]:
    """Yield the parts and their arguments, the most important first."""
    forms = [form for form in MEASURED if form in options.forms]
    chosen: list[tuple[str, ...]] = [("floor",), ("fidelity", *forms)]
    chosen += [("pair", form, Residency.RESIDENT) for form in forms if form in MAIN_FORMS]
    chosen += [("profile", form) for form in forms if form in MAIN_FORMS]
    chosen += [("peer", "fp16"), ("pair", CODED, Residency.STREAM), ("pair", "bf16", Residency.RESIDENT)]
    chosen += [("peer", "bf16"), ("pair", "fp16", Residency.STREAM), ("peer", "int8")]
    chosen += [("pair", SEPARATE, Residency.RESIDENT), ("pair", "fp16", Residency.ALTERNATE), ("peer", "nf4")]
    return (
        part for part in chosen if part[0] in options.only and (part[0] != "pair" or part[1] in options.forms)
    )


def _run(part: str, scratch: Path, *arguments: str) -> dict[str, Any]:
    """Run a part in a child process; the row of one that fails holds its last lines."""
    command = [sys.executable, "-m", "benchmarks.gpu", "--child", part, str(scratch), *arguments]
    environment = os.environ | ({"CUDA_LAUNCH_BLOCKING": "1"} if part == "profile" else {})
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
    if done.returncode == 0:
        row: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return row
    return {"arguments": arguments, "failed": done.stderr.strip().splitlines()[-ERROR_LINES:]}


if __name__ == "__main__":
    main()
