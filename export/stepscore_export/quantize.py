"""Quantisation of a weight matrix: array -> (codes, scales). Pure: no graph, no files."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Quantized:
    """A matrix [N, K] as integer codes and one scale a block of `block_size` columns.

    `codes` is uint8 [N, ceil(K / block_size), block_size * bits / 8] in the layout of ONNX Runtime's
    MatMulNBits (4 bits: two codes a byte, the even column in the low half; 2 bits likewise), `scales` is
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
    Raises ValueError for bits other than 2, 4 and 8, or a block_size that fills no whole bytes.

    >>> q = quantize(np.array([[-8.0, 1.0, 7.0, 0.4]], np.float32), bits=4, block_size=4)
    >>> q.scales.tolist(), [f"{byte:02x}" for byte in q.codes.ravel()]
    ([[1.0]], ['90', '8f'])
    >>> dequantize(q, bits=4, columns=4).tolist()
    [[-8.0, 1.0, 7.0, 0.0]]
    """
    if bits not in (2, 4, 8) or block_size * bits % 8:
        raise ValueError(f"bits must be 2, 4 or 8 and fill whole bytes, not {bits} for {block_size} columns")
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
    return Quantized(_packed(codes.astype(np.uint8), bits), scales)


def dequantize(quantized: Quantized, bits: int, columns: int) -> NDArray[np.float32]:
    """Return the float32 [N, columns] matrix that the codes stand for: (code - 2^(bits-1)) * scale."""
    codes = _unpacked(quantized.codes, bits)
    values = (codes.astype(np.float32) - (1 << (bits - 1))) * quantized.scales.astype(np.float32)[..., None]
    return values.reshape(len(values), -1)[:, :columns]


def signed(codes: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Return packed codes around 2^(bits-1) as two's complement around 0: the top bit of each is flipped.

    >>> [f"{byte:02x}" for byte in signed(np.array([0x90, 0x8F], np.uint8), bits=4)]
    ['18', '07']
    """
    top_bits = sum(1 << position for position in range(bits - 1, 8, bits))
    return codes ^ np.uint8(top_bits)


@dataclass(frozen=True, slots=True)
class QuantizedChannels:
    """A matrix [N, K] as int8 codes [N, K] in -127 .. 127 and one float32 scale a row [N]."""

    codes: NDArray[np.int8]
    scales: NDArray[np.float32]


def quantize_channels(weight: NDArray[np.float32]) -> QuantizedChannels:
    """Round every row (output channel) to 8 bits, symmetric: scale = max |w| / 127, code = round(w / scale).

    weight: float32 [N, K]. A row of zeros has scale 0. |w - code * scale| <= scale / 2.

    >>> q = quantize_channels(np.array([[15.875, -0.3, 6.0], [0, 0, 0]], np.float32))
    >>> q.codes.tolist(), q.scales.tolist()
    ([[127, -2, 48], [0, 0, 0]], [0.125, 0.0])
    """
    scales = np.abs(weight).max(axis=1, initial=0) / np.float32(127)
    scales[scales < np.finfo(np.float32).tiny] = 0  # 1 / subnormal overflows
    inverse = np.divide(1, scales, out=np.zeros_like(scales), where=scales != 0)
    codes = np.rint(weight * inverse[:, None])
    return QuantizedChannels(np.clip(codes, -127, 127).astype(np.int8), scales)


def _packed(codes: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    # [..., columns] -> [..., columns * bits / 8], the first column in the lowest bits
    per_byte = 8 // bits
    packed = codes[..., 0::per_byte].copy()
    for place in range(1, per_byte):
        packed |= codes[..., place::per_byte] << (place * bits)
    return packed


def _unpacked(codes: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    per_byte = 8 // bits
    places = [(codes >> (place * bits)) & ((1 << bits) - 1) for place in range(per_byte)]
    return np.stack(places, axis=-1).reshape(*codes.shape[:-1], -1)
