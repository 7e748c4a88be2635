"""Expected speed and residency of a pair for CUDA on well-known cards, by arithmetic: all are estimates.

The time of a window is that of its matrix products at the card's sustained rate, of the elementwise work
between them at its memory bandwidth, and of decoding the weights once; where layers are streamed, the time to
copy them if that is longer. What was measured is in docs/benchmarks/gpu.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from stepscore.artifact.manifest import Manifest
from stepscore.enums import Precision, Residency
from stepscore.errors import DoesNotFit
from stepscore.memory.estimate import estimate
from stepscore.memory.fit import fit_settings
from stepscore.memory.gpu import (
    decoded_elements,
    is_decoded,
    is_lossless,
    stage_sizes,
    streamed_bytes,
)
from stepscore.memory.settings import Settings


@dataclass(frozen=True, slots=True)
class Card:
    """A card: usable memory in GB, sustained fp16 products in TFLOP/s, memory and link in GB/s."""

    name: str
    gigabytes: float
    tflops: float
    bandwidth: float
    link: float
    has_bf16: bool = True


CARDS = (
    Card("T4", 15, 28, 300, 12, has_bf16=False),
    Card("L4", 23, 62, 300, 12),
    Card("A10", 23, 75, 600, 25),
    Card("RTX 3090", 23.5, 65, 936, 25),
    Card("RTX 4090", 23.5, 150, 1008, 25),
    Card("A100", 79, 250, 1555, 25),
    Card("H100", 79, 730, 3000, 55),
    Card("H200", 140, 734, 4300, 55),
)
"""Data sheets and ratios to the products measured on an H200: 734 TFLOP/s in a burst."""

ELEMENTWISE = 0.6
"""Share of the memory bandwidth that elementwise operators reach."""
HIDDEN_VECTORS, WIDE_VECTORS = 19, 8
"""16-bit vectors that a layer moves for a token: of hidden_size in attention and norms, of
intermediate_size in the MLP."""
LOGIT_BYTES = 16
"""Bytes moved for a logit: fp32, its log-softmax."""
DIFFERENCE_BYTES, INDEPENDENT_BYTES, LOSSLESS_BYTES = 35, 18, 8
"""Bytes of bandwidth that decoding a weight of both models costs. ONNX Runtime's kernels spend it on integer
divisions; a lossless difference is decoded by a kernel of its own, bound by its reads and writes."""


@dataclass(frozen=True, slots=True)
class Expectation:
    """What a pair is expected to do on a card; `tokens_per_second` of windows of these settings."""

    card: Card
    settings: Settings | None
    num_bytes: int
    tokens_per_second: float


def expectations(manifest: Manifest) -> Iterator[Expectation]:
    """Yield the expectation for every card; one without settings where the pair does not run there."""
    for card in CARDS:
        limit = round(card.gigabytes * 1e9)
        if manifest.precision is Precision.BF16 and not card.has_bf16:
            yield Expectation(card, None, 0, 0.0)
            continue
        try:
            settings = fit_settings(manifest, memory_limit=limit)
        except DoesNotFit:
            yield Expectation(card, None, 0, 0.0)
            continue
        needed = estimate(manifest, settings).total
        yield Expectation(card, settings, needed, tokens_per_second(manifest, settings, card))


def tokens_per_second(manifest: Manifest, settings: Settings, card: Card) -> float:
    """Return the expected tokens/s through both models, of full windows without shared prefixes."""
    computed = settings.window_tokens * seconds_per_token(manifest, card)
    elements = len(stage_sizes(manifest)) / len(manifest.units) * decoded_elements(manifest)
    computed += elements * decoded_bytes(manifest) / (card.bandwidth * 1e9)
    copied = streamed_bytes(manifest, settings) / (card.link * 1e9)
    return settings.window_tokens / max(computed, copied)


def decoded_bytes(manifest: Manifest) -> int:
    """Return the bytes of bandwidth that decoding a weight of both models costs, once a window."""
    if not is_decoded(manifest):
        return 0
    if is_lossless(manifest):
        return LOSSLESS_BYTES
    return INDEPENDENT_BYTES if manifest.difference is None else DIFFERENCE_BYTES


def seconds_per_token(manifest: Manifest, card: Card) -> float:
    """Return the time of a token through both models: products, then what lies between them."""
    shape = manifest.architecture
    heads = shape.num_attention_heads * shape.head_dim
    projected = heads + 2 * shape.num_key_value_heads * shape.head_dim
    of_layer = shape.hidden_size * (projected + heads + 3 * shape.intermediate_size)
    weights = shape.num_hidden_layers * of_layer + shape.vocab_size * shape.hidden_size
    moved = 2 * (HIDDEN_VECTORS * shape.hidden_size + WIDE_VECTORS * shape.intermediate_size)
    num_bytes = shape.num_hidden_layers * moved + LOGIT_BYTES * shape.vocab_size
    products = 2 * weights / (card.tflops * 1e12)
    return 2 * (products + num_bytes / (ELEMENTWISE * card.bandwidth * 1e9))


def described(manifest: Manifest, expected: Expectation) -> str:
    """Return an expectation as text."""
    settings = expected.settings
    if settings is None:
        lacks_bf16 = manifest.precision is Precision.BF16 and not expected.card.has_bf16
        return "does not compute in bf16" if lacks_bf16 else "does not fit"
    kept = ""
    if settings.residency is Residency.PARTIAL:
        kept = f", {settings.resident_stages} of {len(stage_sizes(manifest))} stages resident"
    return (
        f"{settings.residency}{kept}, batches of {settings.max_batch_tokens:,} tokens: "
        f"{expected.num_bytes / 1e9:,.1f} GB, about {rounded(expected.tokens_per_second):,} tokens/s "
        f"(estimated)"
    )


def rounded(speed: float) -> int:
    """Round to two digits: an estimate has no more.

    >>> rounded(18_345.0), rounded(763.0), rounded(7.9)
    (18000, 760, 8)
    """
    digits = max(0, len(str(int(speed))) - 2)
    scale: int = 10**digits
    return round(speed / scale) * scale
