"""Floor of a forward pass on a GPU: only the GEMMs of both models, by cuBLAS, one after the other.

In a burst each product is timed alone on a card that has nothing else to do. Sustained, the products of a
layer run in turn for seconds, and so does that of the head: clocks, power and caches are then those of
scoring. Shares of the floor are taken at the same number of rows.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import TYPE_CHECKING, Any

from benchmarks.support.machine import gpu_load

from stepscore.enums import Precision, Provider
from stepscore_export.families.base import DecoderConfig

if TYPE_CHECKING:
    import torch

HEAD_ROWS = 4096
"""Most rows of the head at once: more logits need too much memory."""
WARM_UPS, REPEATS = 3, 5
CHUNK_SECONDS = 0.05
"""Work that is launched before it is waited for: a wait costs microseconds."""
Product = Callable[[], object]


def measure_floor(
    shape: DecoderConfig, device: Provider, precision: Precision, rows: Sequence[int], seconds: float
) -> list[dict[str, Any]]:
    """Time the GEMMs at each number of rows; tokens/s are those of a pair that had nothing else.

    tokens/s = rows / (2 (layers * t_layer + t_head)), with t the time of the products at these rows.
    """
    return [_at(shape, device, precision, count, seconds) for count in rows]


def layer_gemms(shape: DecoderConfig) -> dict[str, tuple[int, int]]:
    """Return depth and columns of each GEMM of a layer."""
    heads = (shape.num_attention_heads + 2 * shape.num_key_value_heads) * shape.head_dim
    hidden, wide = shape.hidden_size, shape.intermediate_size
    return {
        "qkv": (hidden, heads),
        "output": (shape.num_attention_heads * shape.head_dim, hidden),
        "gate": (hidden, wide),
        "up": (hidden, wide),
        "down": (wide, hidden),
    }


def _at(
    shape: DecoderConfig, device: Provider, precision: Precision, rows: int, seconds: float
) -> dict[str, Any]:
    layer = {name: _product(rows, size, device, precision) for name, size in layer_gemms(shape).items()}
    at_once = min(rows, HEAD_ROWS)
    head = _product(at_once, (shape.hidden_size, shape.vocab_size), device, precision)
    scale = rows / at_once

    def speed(of_layer: float, of_head: float) -> dict[str, Any]:
        both = 2 * (shape.num_hidden_layers * of_layer + of_head)
        flops = 2 * rows * sum(depth * columns for depth, columns in layer_gemms(shape).values())
        return {
            "layer_milliseconds": round(1e3 * of_layer, 4),
            "head_milliseconds": round(1e3 * of_head, 4),
            "tflops": round(flops / of_layer / 1e12, 1),
            "tokens_per_second": round(rows / both, 1),
        }

    alone = {name: _burst(product, device) for name, product in layer.items()}
    in_burst = sum(alone.values()), scale * _burst(head, device)
    load: list[dict[str, float]] = []
    in_turn = _sustained(list(layer.values()), in_burst[0], device, seconds, load)
    head_in_turn = scale * _sustained([head], in_burst[1] / scale, device, seconds, load)
    return {
        "rows": rows,
        "milliseconds": {name: round(1e3 * value, 4) for name, value in alone.items()},
        "burst": speed(*in_burst),
        "sustained": speed(in_turn, head_in_turn) | _medians(load),
    }


def _product(rows: int, size: tuple[int, int], device: Provider, precision: Precision) -> Product:
    import torch  # noqa: PLC0415

    dtype = torch.bfloat16 if precision is Precision.BF16 else torch.float16
    left = torch.randn(rows, size[0], device=device.value, dtype=dtype)
    right = torch.randn(size[1], size[0], device=device.value, dtype=dtype) / math.sqrt(size[0])
    result = torch.empty(rows, size[1], device=device.value, dtype=dtype)

    def run() -> torch.Tensor:
        return torch.matmul(left, right.T, out=result)

    return run


def _burst(product: Product, device: Provider) -> float:
    """Return the median seconds of a product alone."""
    times = []
    for _ in range(WARM_UPS + REPEATS):
        if device is Provider.CPU:
            started = time.perf_counter()
            product()
            times.append(time.perf_counter() - started)
        else:
            times.append(_by_events(product))
    return median(times[WARM_UPS:])


def _by_events(product: Product) -> float:
    import torch  # noqa: PLC0415

    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    product()
    end.record()
    torch.cuda.synchronize()
    return float(begin.elapsed_time(end)) / 1e3


def _sustained(
    products: Sequence[Product],
    in_burst: float,
    device: Provider,
    seconds: float,
    load: list[dict[str, float]],
) -> float:
    """Run products in turn for so long; return the seconds of a turn in the second half, append the load."""
    import torch  # noqa: PLC0415

    turns, took = math.ceil(CHUNK_SECONDS / in_burst), []
    started = time.perf_counter()
    while (begun := time.perf_counter()) - started < seconds or len(took) < 2:
        for _ in range(turns):
            for product in products:
                product()
        if device is Provider.CUDA:
            load.append(gpu_load())
            torch.cuda.synchronize()
        took.append(time.perf_counter() - begun)
    second_half = took[len(took) // 2 :]
    return sum(second_half) / len(second_half) / turns


def _medians(load: Sequence[dict[str, float]]) -> dict[str, float]:
    return {name: round(median(each[name] for each in load), 1) for name in load[0]} if load else {}
