"""Measure speed, memory and fidelity of each form on a GPU, next to the cuBLAS floor and PyTorch.

    make bench-gpu                        Qwen2.5-7B shape, 28 layers, about 10 minutes on one H100 or H200
    make bench-gpu FLAGS="--seconds 400"  start no part after 400 seconds; the next run goes on there
    make bench-gpu FLAGS="--only floor engine --forms fp16"
    make bench-gpu FLAGS=--quick          a tiny model; without a GPU on the CPU, to see that it works

Pairs are hollow (support/hollow.py): work and memory are real, weights and rewards are not. `engine` runs
windows of 512 random ids a sequence without shared prefixes, so that a speed can be compared with the floor
(support/cublas_floor.py). `text` is a sample of best-of-8 solutions, the same token ids for every engine,
input tokens per second. PyTorch has random weights; of bitsandbytes' one layer is made, and run as often as
there are layers. `fidelity` scores problems with the bundled pair, which is trained: relative RMS errors of
the log-ratio against fp64.

Each part is a process (support/gpu_parts.py) with a time limit, and the most decisive ones come first
(support/gpu_plan.py). Its line is printed at once and appended to results/gpu_<card>.jsonl; a part that has a
line there is not run again. Memory is what the driver reports, sampled, less what was used before.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.support.gpu_bench import Bench
from benchmarks.support.gpu_lines import append_line, lines_name, measured, read_lines, with_shares
from benchmarks.support.gpu_parts import ERROR_LINES, PARTS
from benchmarks.support.gpu_plan import GPU_FORMS, Part, PartName, plan
from benchmarks.support.machine import gpu_facts
from benchmarks.support.options import add_child, benchmark_parser
from benchmarks.support.results import QUICK_RESULTS, RESULTS
from benchmarks.support.shapes import QUICK, QWEN_7B

from stepscore.engine.ort.provider_checks import run_tiny_model
from stepscore.enums import Provider
from stepscore.errors import StepscoreError


def main() -> None:
    """Run the parts that have no line yet."""
    options = parsed_options()
    if options.child:
        scratch, name, *arguments = options.child
        print(json.dumps(PARTS[PartName(name)](Bench.read(Path(scratch)), *arguments)))
        return
    shape = QUICK if options.quick else QWEN_7B
    shape = replace(shape, num_hidden_layers=options.layers or shape.num_hidden_layers)
    with tempfile.TemporaryDirectory(dir=options.scratch) as folder:
        bench = Bench(Path(folder), shape, options.device, options.quick)
        bench.write()
        run_plan(bench, plan(options.only, options.forms), options)


def parsed_options(arguments: list[str] | None = None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = benchmark_parser(__doc__)
    add_child(parser)
    names, devices = list(PartName), [Provider.CUDA, Provider.CPU]
    parser.add_argument(
        "--device", type=Provider, choices=devices, help="default: cuda, with --quick what runs"
    )
    parser.add_argument("--layers", type=int, help="use fewer layers than the shape has")
    parser.add_argument(
        "--only", nargs="*", type=PartName, choices=names, default=names, help="run these parts"
    )
    parser.add_argument("--forms", nargs="*", choices=list(GPU_FORMS), default=list(GPU_FORMS))
    parser.add_argument("--seconds", type=float, default=3600, help="start no part after N seconds")
    parser.add_argument("--again", action="store_true", help="run parts again that have a line already")
    parser.add_argument(
        "--results", type=Path, help="append lines to a file in this folder; those of results/ count as run"
    )
    options = parser.parse_args(arguments)
    if options.device is None:
        options.device = _runs_here() if options.quick else Provider.CUDA
    if options.device is Provider.CPU and not options.quick:
        parser.error("--device cpu requires --quick: nothing is measured on a CPU")
    return options


def _runs_here() -> Provider:
    try:
        run_tiny_model(Provider.CUDA)
    except StepscoreError as error:
        print(f"{error.message}: the plan runs on the CPU, and no number means a thing", file=sys.stderr)
        return Provider.CPU
    return Provider.CUDA


def run_plan(bench: Bench, parts: list[Part], options: argparse.Namespace) -> None:
    """Run parts in order; print the line of each and append it to the file of the card."""
    card = str(gpu_facts()["name"]) if bench.on_gpu else "cpu"
    kept = QUICK_RESULTS if bench.quick else RESULTS
    path = (options.results or kept) / lines_name(card)
    known = read_lines(kept / path.name) if options.results else []
    started = time.perf_counter()
    for index, part in enumerate(parts):
        lines = known + read_lines(path)
        if not options.again and (part, bench.shape.num_hidden_layers) in measured(lines):
            continue
        if time.perf_counter() - started > options.seconds:
            print(f"{len(parts) - index} parts are left: run it again", file=sys.stderr)
            break
        line = with_shares(_measured_line(bench, part, card), lines)
        print(json.dumps(line), flush=True)
        append_line(path, line)
    print(path, file=sys.stderr)


def _measured_line(bench: Bench, part: Part, card: str) -> dict[str, Any]:
    started = time.perf_counter()
    row = run_part(bench, part)
    return {
        "part": part.name.value,
        "arguments": list(part.arguments),
        "device": bench.device.value,
        "card": card,
        "layers": bench.shape.num_hidden_layers,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(time.perf_counter() - started, 1),
        **row,
    }


def run_part(bench: Bench, part: Part) -> dict[str, Any]:
    """Run a part in a process; the row of one that fails, or takes too long, holds its last lines."""
    command = [sys.executable, "-m", "benchmarks.gpu", "--child", str(bench.scratch), part.name.value]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen([*command, *part.arguments], text=True, start_new_session=True, **pipes)
    limit = bench.sizes.part_seconds
    try:
        output, errors = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        _end(process)
        return {"failed": [f"ended after {limit:.0f} seconds", *_last_lines(process.communicate()[1])]}
    except BaseException:
        _end(process)
        raise
    if process.returncode:
        return {"failed": _last_lines(errors) or [f"exit status {process.returncode}"]}
    row: dict[str, Any] = json.loads(output.splitlines()[-1])
    return row


def _end(process: subprocess.Popen[str]) -> None:
    """End a process and those it started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _last_lines(text: str) -> list[str]:
    return text.strip().splitlines()[-ERROR_LINES:]


if __name__ == "__main__":
    main()
