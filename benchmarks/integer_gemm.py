"""Measure the rate of a pair's integer GEMMs in a run, and of the same GEMMs alone."""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import onnxruntime as ort
from benchmarks.peers.contender import Tokens
from benchmarks.support.profiles import (
    INTEGER_GEMM,
    Gemm,
    Kernel,
    after_first_run,
    of_stages,
    profiled,
    shares,
)
from onnx import TensorProto, helper, numpy_helper

from stepscore.artifact.pair import Pair
from stepscore.engine.base import EngineOptions
from stepscore.engine.ort.engine import OrtEngine
from stepscore.engine.ort.provider_checks import needs_unsigned_weights

ALONE_RUNS = 15
COPIED_BYTES = 128 << 20
"""Bytes of weight copies: more than a cache keeps from one run to the next."""
MOST_COPIES = 64
"""Limit for small GEMMs, whose weights fit in a cache anyway."""
STAGES = ("body", "head")


@dataclass(frozen=True, slots=True)
class GemmRates:
    """Integer GEMMs of one engine on one sequence.

    Rates are in 10^9 operations per second (a multiplication and an addition are two): in the run, over the
    time of all GEMMs; alone, the best of ALONE_RUNS of each GEMM in a separate session, whose threads may
    spin. Alone, weights stay in the cache between runs, as they cannot in a model; "from memory" the session
    cycles through copies of them, and the median counts. Shares are of the time of all kernels, and of the
    wall time of the profiled runs.
    """

    in_run_gops: float
    alone_gops: float
    in_run_over_alone: float
    from_memory_gops: float
    in_run_over_from_memory: float
    share_of_kernels: float
    share_of_wall: float
    operations_a_token: float
    repeats: int


def measure(pair: Path, tokens: Tokens, threads: int, repeats: int) -> dict[str, Any]:
    """Profile a pair with int8 activations on one sequence, then its GEMMs alone."""
    with tempfile.TemporaryDirectory() as scratch:
        with profiled(Path(scratch)) as recorded:
            wall = _run(pair, tokens, threads, repeats)
        kernels = [
            kernel for stage in STAGES for kernel in after_first_run(of_stages(recorded, stage), repeats + 1)
        ]
        gemms = [(kernel.gemm, kernel.microseconds) for kernel in kernels if kernel.gemm is not None]
        counts = Counter(gemm for gemm, _ in gemms)
        alone = {gemm: best_alone(gemm, threads, Path(scratch)) for gemm in counts}
        cold = {gemm: median_from_memory(gemm, threads, Path(scratch)) for gemm in counts}
    spent = sum(microseconds for _, microseconds in gemms)
    operations = sum(gemm.operations * count for gemm, count in counts.items())
    in_run = operations / spent / 1e3
    best, from_memory = (
        operations / sum(times[gemm] * count for gemm, count in counts.items()) / 1e3
        for times in (alone, cold)
    )
    rates = GemmRates(
        in_run_gops=round(in_run, 1),
        alone_gops=round(best, 1),
        in_run_over_alone=round(in_run / best, 3),
        from_memory_gops=round(from_memory, 1),
        in_run_over_from_memory=round(in_run / from_memory, 3),
        share_of_kernels=round(spent / _total(kernels), 3),
        share_of_wall=round(spent / 1e6 / wall, 3),
        operations_a_token=round(operations / repeats / len(tokens)),
        repeats=repeats,
    )
    by_shape = [
        {
            **asdict(gemm),
            "count": count // repeats,
            "alone_gops": _gops(gemm, alone[gemm]),
            "from_memory_gops": _gops(gemm, cold[gemm]),
        }
        for gemm, count in counts.most_common()
    ]
    return {**asdict(rates), "products": by_shape, "shares": shares(kernels)}


def best_alone(gemm: Gemm, threads: int, scratch: Path) -> float:
    """Return the best time of a GEMM alone, microseconds of its kernel."""
    return min(_times(gemm, 1, threads, scratch))


def median_from_memory(gemm: Gemm, threads: int, scratch: Path) -> float:
    """Return the median time of a GEMM whose weights are not in the cache, microseconds."""
    copies = min(MOST_COPIES, -(-COPIED_BYTES // (gemm.depth * gemm.columns)))
    return median(_times(gemm, copies, threads, scratch)[copies:])


def _times(gemm: Gemm, copies: int, threads: int, scratch: Path) -> list[int]:
    """Return the microseconds of a GEMM with each copy of its weights, run after run."""
    path = scratch / "gemm.onnx"
    path.write_bytes(_model(gemm, copies))
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    rows = np.random.default_rng(0).integers(0, 256, (gemm.rows, gemm.depth), np.uint8)
    with profiled(scratch) as kernels:
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        for _ in range(-(-ALONE_RUNS // copies) + 1):
            session.run(None, {"a": rows})
    return [kernel.microseconds for kernel in kernels if kernel.operator == INTEGER_GEMM]


def _run(pair: Path, tokens: Tokens, threads: int, repeats: int) -> float:
    """Return the seconds of all runs after the first."""
    engine = OrtEngine(Pair.open(pair), EngineOptions(threads=threads))
    engine.logprobs([tokens])
    started = time.perf_counter()
    for _ in range(repeats):
        engine.logprobs([tokens])
    seconds = time.perf_counter() - started
    engine.close()
    return seconds


def _model(gemm: Gemm, copies: int) -> bytes:
    """Build a graph with a GEMM per copy of the weights, signed or unsigned as the engine reads them here."""
    rng = np.random.default_rng(1)
    unsigned = needs_unsigned_weights()
    codes = rng.integers(-127, 128, (gemm.depth, gemm.columns), np.int16)
    stored = (codes + 128).astype(np.uint8) if unsigned else codes.astype(np.int8)
    names = range(copies)
    constants = {
        **{f"b{name}": stored for name in names},
        "a_scale": np.array(1, np.float32),
        "b_scale": np.ones(gemm.columns, np.float32),
        "zero": np.array(128, np.uint8),
    }
    zeros = ["zero"] * (2 if unsigned else 1)
    nodes = [
        helper.make_node(
            INTEGER_GEMM,
            ["a", f"b{name}", "a_scale", "b_scale", *zeros],
            [f"y{name}"],
            domain="com.microsoft",
        )
        for name in names
    ]
    size = [gemm.rows, gemm.columns]
    graph = helper.make_graph(
        nodes,
        "gemm",
        [helper.make_tensor_value_info("a", TensorProto.UINT8, [gemm.rows, gemm.depth])],
        [helper.make_tensor_value_info(f"y{name}", TensorProto.FLOAT, size) for name in names],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()


def _total(kernels: list[Kernel]) -> int:
    return sum(kernel.microseconds for kernel in kernels)


def _gops(gemm: Gemm, microseconds: float) -> float:
    return round(gemm.operations / microseconds / 1e3, 1)
