"""Random token sequences of given lengths."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from testing.checkpoints import TINY

from stepscore_export.families.base import DecoderConfig

Tokens = NDArray[np.int64]

RAGGED = (2, 3, 90, 17, 300, 64)


def tokens(*lengths: int) -> list[Tokens]:
    """Draw ids of the tiny vocabulary."""
    random = np.random.default_rng(11)
    return [random.integers(0, TINY.vocab_size, length) for length in lengths]


def ragged(shape: DecoderConfig = TINY, lengths: tuple[int, ...] = RAGGED) -> list[Tokens]:
    """Draw ids of a model's vocabulary, in sequences of lengths that fill no batch evenly."""
    random = np.random.default_rng(7)
    return [random.integers(0, shape.vocab_size, length) for length in lengths]
