"""How fast the integer products of a pair are in the run, and how fast the same ones are alone."""

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
    INTEGER_PRODUCT,
    Kernel,
    Product,
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
"""Weights that no cache holds from one run to the next."""
MOST_COPIES = 64
"""Of small ones, which fit into a cache anyway."""
STAGES = ("body", "head")


@dataclass(frozen=True, slots=True)
class ProductRates:
    """Integer products of one engine on one sequence.

    Rates in 10^9 operations a second (a multiplication and an addition are two): in the run, all products
    over all of their time; alone, the same products each at its best of ALONE_RUNS, in a session of its own
    whose threads may spin. There the weights stay in the cache from one run to the next, as they cannot in a
    model: from memory, the session multiplies with copies of them in turn, and the median counts. Shares of
    the time: of all kernels, and of the wall clock of the profiled runs.
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
    """Profile a pair with int8 activations on one sequence, then its products alone."""
    with tempfile.TemporaryDirectory() as scratch:
        with profiled(Path(scratch)) as recorded:
            wall = _run(pair, tokens, threads, repeats)
        kernels = [
            kernel for stage in STAGES for kernel in after_first_run(of_stages(recorded, stage), repeats + 1)
        ]
        products = [(kernel.product, kernel.microseconds) for kernel in kernels if kernel.product is not None]
        counts = Counter(product for product, _ in products)
        alone = {product: best_alone(product, threads, Path(scratch)) for product in counts}
        cold = {product: median_from_memory(product, threads, Path(scratch)) for product in counts}
    spent = sum(microseconds for _, microseconds in products)
    operations = sum(product.operations * count for product, count in counts.items())
    in_run = operations / spent / 1e3
    best, from_memory = (
        operations / sum(times[product] * count for product, count in counts.items()) / 1e3
        for times in (alone, cold)
    )
    rates = ProductRates(
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
            **asdict(product),
            "count": count // repeats,
            "alone_gops": _gops(product, alone[product]),
            "from_memory_gops": _gops(product, cold[product]),
        }
        for product, count in counts.most_common()
    ]
    return {**asdict(rates), "products": by_shape, "shares": shares(kernels)}


def best_alone(product: Product, threads: int, scratch: Path) -> float:
    """Return the best time of one product alone, in microseconds of its kernel."""
    return min(_times(product, 1, threads, scratch))


def median_from_memory(product: Product, threads: int, scratch: Path) -> float:
    """Return the median time of one product whose weights are not in the cache, microseconds."""
    copies = min(MOST_COPIES, -(-COPIED_BYTES // (product.depth * product.columns)))
    return median(_times(product, copies, threads, scratch)[copies:])


def _times(product: Product, copies: int, threads: int, scratch: Path) -> list[int]:
    """Return the microseconds of a product with each copy of its weights in turn, run after run."""
    path = scratch / "product.onnx"
    path.write_bytes(_model(product, copies))
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    rows = np.random.default_rng(0).integers(0, 256, (product.rows, product.depth), np.uint8)
    with profiled(scratch) as kernels:
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        for _ in range(-(-ALONE_RUNS // copies) + 1):
            session.run(None, {"a": rows})
    return [kernel.microseconds for kernel in kernels if kernel.operator == INTEGER_PRODUCT]


def _run(pair: Path, tokens: Tokens, threads: int, repeats: int) -> float:
    """Return the seconds of all runs but the first."""
    engine = OrtEngine(Pair.open(pair), EngineOptions(threads=threads))
    engine.logprobs([tokens])
    started = time.perf_counter()
    for _ in range(repeats):
        engine.logprobs([tokens])
    seconds = time.perf_counter() - started
    engine.close()
    return seconds


def _model(product: Product, copies: int) -> bytes:
    """One product for each copy of its weights, which are as the engine reads them on this machine."""
    rng = np.random.default_rng(1)
    unsigned = needs_unsigned_weights()
    codes = rng.integers(-127, 128, (product.depth, product.columns), np.int16)
    stored = (codes + 128).astype(np.uint8) if unsigned else codes.astype(np.int8)
    names = range(copies)
    constants = {
        **{f"b{name}": stored for name in names},
        "a_scale": np.array(1, np.float32),
        "b_scale": np.ones(product.columns, np.float32),
        "zero": np.array(128, np.uint8),
    }
    zeros = ["zero"] * (2 if unsigned else 1)
    nodes = [
        helper.make_node(
            INTEGER_PRODUCT,
            ["a", f"b{name}", "a_scale", "b_scale", *zeros],
            [f"y{name}"],
            domain="com.microsoft",
        )
        for name in names
    ]
    size = [product.rows, product.columns]
    graph = helper.make_graph(
        nodes,
        "product",
        [helper.make_tensor_value_info("a", TensorProto.UINT8, [product.rows, product.depth])],
        [helper.make_tensor_value_info(f"y{name}", TensorProto.FLOAT, size) for name in names],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()


def _total(kernels: list[Kernel]) -> int:
    return sum(kernel.microseconds for kernel in kernels)


def _gops(product: Product, microseconds: float) -> float:
    return round(product.operations / microseconds / 1e3, 1)
