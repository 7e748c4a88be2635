"""Matrices to quantise: any small ones, zeros and both signs among them."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from numpy.typing import NDArray

from stepscore_export.quantization.rounding import (
    Quantized,
)

Weight = NDArray[np.float32]

BITS = st.sampled_from([2, 4, 8])
BLOCK_SIZES = st.sampled_from([16, 32, 64, 128])


@st.composite
def weights(draw: st.DrawFn, smallest: float = 2**-10) -> Weight:
    """Any matrix of a few blocks: zeros, and magnitudes from `smallest` to 1024, of both signs."""
    shape = (draw(st.integers(1, 4)), draw(st.integers(1, 150)))
    magnitude = st.floats(smallest, 1024, width=32) | st.just(0.0)
    values = draw(npst.arrays(np.float32, shape, elements=magnitude))
    signs = draw(npst.arrays(np.bool_, shape))
    return np.where(signs, -values, values).astype(np.float32)


def per_column(quantized: Quantized, block_size: int, columns: int) -> NDArray[np.float64]:
    """The scale of every entry."""
    return np.repeat(quantized.scales.astype(np.float64), block_size, axis=1)[:, :columns]
