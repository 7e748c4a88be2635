"""Rotary position embeddings: the kinds that checkpoints are trained with, and the frequencies of each."""

from __future__ import annotations

import math
from typing import get_args

import msgspec
import numpy as np
from numpy.typing import NDArray

Frequencies = NDArray[np.float64]


class DefaultRope(msgspec.Struct, frozen=True, tag="default"):
    """Angles position * theta^(-2i / head_dim), without scaling."""

    theta: float


class Llama3Rope(msgspec.Struct, frozen=True, tag="llama3"):
    """Low frequencies divided by `factor`, high ones kept, those between interpolated."""

    theta: float
    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int


class YarnRope(msgspec.Struct, frozen=True, tag="yarn"):
    """YaRN: low frequencies divided by `factor`, high ones kept, a linear ramp between them."""

    theta: float
    factor: float
    original_max_position_embeddings: int
    attention_factor: float
    """What cos and sin are multiplied with."""
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    """Whether the ends of the ramp are rounded outwards to whole indices."""


Rope = DefaultRope | Llama3Rope | YarnRope
ROPE_KINDS = tuple(str(kind.__struct_config__.tag) for kind in get_args(Rope))
"""Their names, as transformers has them."""


def rotary_frequencies(rope: Rope, head_dim: int) -> tuple[Frequencies, float]:
    """Return the inverse frequencies (float64 [head_dim / 2], radians per position) and the attention factor.

    Entry i rotates the values i and i + head_dim / 2 of a head by `position * frequency[i]`; cos and sin are
    multiplied with the attention factor, which is 1 but for YaRN. With f = theta^(-2i / head_dim), D head_dim
    and L original_max_position_embeddings:

        default   f
        llama3    f / factor where the turns L f / 2 pi within L are below low_freq_factor, f where they are
                  above high_freq_factor, else (1 - s) f / factor + s f with
                  s = (turns - low_freq_factor) / (high_freq_factor - low_freq_factor)
        yarn      r f / factor + (1 - r) f with r = clip((i - low) / (high - low), 0, 1), where low and high
                  are D ln(L / (2 pi beta)) / (2 ln theta) for beta_fast and beta_slow

    Sources: arXiv:2104.09864 (default), Meta's Llama 3.1 (llama3), arXiv:2309.00071 (yarn); numbers as in
    transformers' modeling_rope_utils.

    >>> rotary_frequencies(DefaultRope(theta=10_000.0), 4)
    (array([1.  , 0.01]), 1.0)
    """
    frequencies: Frequencies = rope.theta ** (-np.arange(0, head_dim, 2) / head_dim)
    match rope:
        case DefaultRope():
            return frequencies, 1.0
        case Llama3Rope():
            return _llama3(rope, frequencies), 1.0
        case YarnRope():
            return _yarn(rope, frequencies, head_dim), rope.attention_factor


def _llama3(rope: Llama3Rope, frequencies: Frequencies) -> Frequencies:
    turns = rope.original_max_position_embeddings * frequencies / (2 * math.pi)
    share = (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    return _mixed(frequencies, rope.factor, kept=np.clip(share, 0, 1))


def _yarn(rope: YarnRope, frequencies: Frequencies, head_dim: int) -> Frequencies:
    low, high = (
        head_dim
        * math.log(rope.original_max_position_embeddings / (beta * 2 * math.pi))
        / (2 * math.log(rope.theta))
        for beta in (rope.beta_fast, rope.beta_slow)
    )
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    if low == high:
        high += 0.001  # as transformers, which so avoids a division by zero
    ramp = np.clip((np.arange(len(frequencies)) - low) / (high - low), 0, 1)
    return _mixed(frequencies, rope.factor, kept=1 - ramp)


def _mixed(frequencies: Frequencies, factor: float, kept: Frequencies) -> Frequencies:
    return kept * frequencies + (1 - kept) * frequencies / factor
