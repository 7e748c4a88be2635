"""Block quantisation of a weight matrix: array -> (codes, scales). Pure: no graph, no files."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Quantized:
    """A matrix [N, K] as integer codes and one scale a block of `block_size` columns.

    `codes` is uint8 [N, ceil(K / block_size), block_size * bits / 8] in the layout of ONNX Runtime's
    MatMulNBits (4 bits: two codes a byte, the even column in the low half), `scales` is
    [N, ceil(K / block_size)]. The zero point is 2^(bits - 1).
    """

    codes: NDArray[np.uint8]
    scales: NDArray[np.floating]


def quantize(
    weight: NDArray[np.float32],
    bits: int,
    block_size: int,
    scale_dtype: np.dtype[np.floating] | type[np.floating] = np.float32,
) -> Quantized:
    """Round every block to `bits` bits, symmetric around zero, nearest code.

    scale = -m / 2^(bits-1), where m is the block's entry of largest magnitude *with its sign* (the negative
    one of a tie), rounded to `scale_dtype` first; in float32,
    code = clip(round(w * (1 / scale)), -2^(bits-1), 2^(bits-1) - 1) + 2^(bits-1).
    The signed maximum lands on the end of the range that has one code more, so no code is wasted (the
    scheme of ggml's Q4_0). A block of zeros has scale 0. |w - dequantize| <= |scale| (half a step, but one
    step for an entry that mirrors m), plus what rounding the scale to `scale_dtype` moves m by.

    weight: float32 [N, K]; K is padded with zeros up to a multiple of block_size.
    Raises ValueError for bits other than 4 and 8 or an odd block_size.

    >>> q = quantize(np.array([[-8.0, 1.0, 7.0, 0.4]], np.float32), bits=4, block_size=4)
    >>> q.scales.tolist(), [f"{byte:02x}" for byte in q.codes.ravel()]
    ([[1.0]], ['90', '8f'])
    >>> dequantize(q, bits=4, columns=4).tolist()
    [[-8.0, 1.0, 7.0, 0.0]]
    """
    if bits not in (4, 8) or block_size % 2:
        raise ValueError(f"bits must be 4 or 8 and block_size even, not {bits} and {block_size}")
    rows, columns = weight.shape
    blocks = -(-columns // block_size)
    if columns != blocks * block_size:
        weight = np.pad(weight, ((0, 0), (0, blocks * block_size - columns)))
    blocked = weight.reshape(rows, blocks, block_size)
    half = 1 << (bits - 1)
    high, low = blocked.max(axis=-1), blocked.min(axis=-1)
    with np.errstate(over="ignore"):  # the caller refuses a scale that its type cannot hold
        scales = (np.where(high > -low, high, low) / np.float32(-half)).astype(scale_dtype)
    scales[np.abs(scales.astype(np.float32)) < np.finfo(np.float32).tiny] = 0  # 1 / subnormal overflows
    steps = scales.astype(np.float32)
    inverse = np.divide(1, steps, out=np.zeros_like(steps), where=steps != 0)
    codes = blocked * inverse[..., None]
    np.rint(codes, out=codes)
    codes += half
    np.clip(codes, 0, 2 * half - 1, out=codes)
    packed = codes.astype(np.uint8)
    if bits == 4:
        packed = packed[..., 0::2] | (packed[..., 1::2] << 4)
    return Quantized(packed, scales)


def dequantize(quantized: Quantized, bits: int, columns: int) -> NDArray[np.float32]:
    """Return the float32 [N, columns] matrix that the codes stand for: (code - 2^(bits-1)) * scale."""
    codes = quantized.codes
    if bits == 4:
        codes = np.stack([codes & 15, codes >> 4], axis=-1).reshape(*codes.shape[:2], -1)
    values = (codes.astype(np.float32) - (1 << (bits - 1))) * quantized.scales.astype(np.float32)[..., None]
    return values.reshape(len(values), -1)[:, :columns]
