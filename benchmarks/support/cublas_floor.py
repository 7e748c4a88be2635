"""Floor of a forward pass on a GPU: only the GEMMs of both models, by cuBLAS, one after the other."""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING, Any

from benchmarks.peers.transformers_gpu import DEVICE

from stepscore_export.families.base import DecoderConfig

if TYPE_CHECKING:
    import torch

TOKENS = 16_384
HEAD_TOKENS = 4096
"""Fewer tokens in the head: logits of TOKENS over the vocabulary need too much memory."""
WARM_UPS, REPEATS = 3, 5


def measure_floor(shape: DecoderConfig) -> dict[str, Any]:
    """Time the GEMMs of a layer and of the head; tokens/s are those of a pair that had nothing else."""
    import torch  # noqa: PLC0415

    layer = layer_gemms(shape)
    flops = 2 * TOKENS * sum(depth * columns for depth, columns in layer.values())
    row: dict[str, Any] = {"rows": TOKENS}
    for name, dtype in (("fp16", torch.float16), ("bf16", torch.bfloat16)):
        seconds = {key: _seconds(TOKENS, size, dtype) for key, size in layer.items()}
        in_layer = sum(seconds.values())
        head = _seconds(HEAD_TOKENS, (shape.hidden_size, shape.vocab_size), dtype) * TOKENS / HEAD_TOKENS
        row[name] = {
            "milliseconds": {key: round(1e3 * value, 3) for key, value in seconds.items()},
            "head_milliseconds": round(1e3 * head, 3),
            "tflops": round(flops / in_layer / 1e12, 1),
            "tokens_per_second": round(TOKENS / 2 / (shape.num_hidden_layers * in_layer + head), 1),
        }
    return row


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


def _seconds(tokens: int, size: tuple[int, int], dtype: torch.dtype) -> float:
    import torch  # noqa: PLC0415

    left = torch.randn(tokens, size[0], device=DEVICE, dtype=dtype)
    right = torch.randn(size[1], size[0], device=DEVICE, dtype=dtype)
    times = []
    for _ in range(WARM_UPS + REPEATS):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        torch.nn.functional.linear(left, right)
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end) / 1e3)
    return median(times[WARM_UPS:])
