"""Quantize a weight matrix: array -> (codes, scales). Pure functions: no graph, no files."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
ScaleType = np.dtype[np.floating] | type[np.floating]


@dataclass(frozen=True, slots=True)
class Quantized:
    """A matrix [N, K] as integer codes with one scale per block of `block_size` columns.

    `codes` is uint8 [N, ceil(K / block_size), block_size * bits / 8] in the layout of ONNX Runtime's
    MatMulNBits (4 bits: two codes per byte, the even column in the low half; 2 bits likewise). `scales` is
    [N, ceil(K / block_size)]. `zeros`, uint8 [N, ceil(K / block_size)], are the zero points; None if all
    of them are 2^(bits - 1).
    """

    codes: NDArray[np.uint8]
    scales: NDArray[np.floating]
    zeros: NDArray[np.uint8] | None = None


@dataclass(frozen=True, slots=True)
class Grid:
    """Scales and zero points (float32) of blocks: a code in 0 .. top means (code - zero) * scale.

    `inverses` are 1 / scale, 0 where the scale is 0; codes minus the zero point lie in low .. high.
    """

    scales: NDArray[np.float32]
    zeros: NDArray[np.float32]
    inverses: NDArray[np.float32]
    low: NDArray[np.float32]
    high: NDArray[np.float32]

    @classmethod
    def of(cls, scales: Floats, zeros: Floats, top: int) -> Grid:
        """Return the grid of these scales and zero points, which broadcast with each other."""
        inverses = np.divide(1, scales, out=np.zeros_like(scales), where=scales != 0)
        return cls(scales, zeros, inverses, -zeros, np.float32(top) - zeros)

    @classmethod
    def symmetric(cls, high: Floats, low: Floats, bits: int, scale_dtype: ScaleType) -> Grid:
        """Map the entry of largest magnitude of each block, m, to code 0, as ggml's Q4_0 does.

        scale = -m / 2^(bits-1), m with its sign (negative if there is a tie); the zero point is 2^(bits-1).
        The sign of the scale puts m at the end of the grid that has one more code, so that all codes are
        used.
        """
        half = 1 << (bits - 1)
        steps = _storable(np.where(high > -low, high, low) / np.float32(-half), scale_dtype)
        return cls.of(steps, np.full_like(steps, half), 2 * half - 1)

    @classmethod
    def asymmetric(cls, high: Floats, low: Floats, bits: int, scale_dtype: ScaleType) -> Grid:
        """Map the range from the lowest to the highest entry of each block to all codes; 0 is exact.

        scale = (high - low) / (2^bits - 1) with high >= 0 >= low; the zero point is round(-low / scale).
        """
        top = (1 << bits) - 1
        high, low = np.maximum(high, 0), np.minimum(low, 0)
        steps = _storable((high - low) / np.float32(top), scale_dtype)
        zeros = np.rint(np.divide(-low, steps, out=np.zeros_like(steps), where=steps != 0))
        return cls.of(steps, np.clip(zeros, 0, top), top)

    def round(self, values: Floats, out: Floats | None = None) -> Floats:
        """Return the nearest codes of `values` (broadcast with the grid), minus the zero point."""
        codes: Floats = np.multiply(values, self.inverses, out=out)
        np.rint(codes, out=codes)
        np.maximum(codes, self.low, out=codes)
        np.minimum(codes, self.high, out=codes)
        return codes

    def __getitem__(self, index: Any) -> Grid:
        """Index the arrays, for example to add axes."""
        return Grid(
            self.scales[index],
            self.zeros[index],
            self.inverses[index],
            self.low[index],
            self.high[index],
        )


def quantize(
    weight: Floats,
    bits: int,
    block_size: int,
    scale_dtype: ScaleType = np.float32,
    *,
    asymmetric: bool = False,
) -> Quantized:
    """Round each entry to the nearest of 2^bits codes on its block's grid, symmetric or asymmetric (Grid).

    The scale is rounded to `scale_dtype` first. Then, in float32,
    code = clip(round(w * (1 / scale)) + zero, 0, 2^bits - 1). A block of zeros has scale 0.

    Error bounds of |w - dequantized w|, up to the rounding of the scale. Symmetric: scale / 2, and |scale|
    for entries close to -m, the negative of the entry m of largest magnitude. Asymmetric: scale / 2, and
    scale at both ends of the range, because the zero point is rounded.

    weight: float32 [N, K]; K is padded with zeros up to a multiple of block_size.
    Raises ValueError for bits other than 2, 4 and 8, or if block_size * bits is not a multiple of 8.

    >>> q = quantize(np.array([[-8.0, 1.0, 7.0, 0.4]], np.float32), bits=4, block_size=4)
    >>> q.scales.tolist(), [f"{byte:02x}" for byte in q.codes.ravel()]
    ([[1.0]], ['90', '8f'])
    >>> dequantize(q, bits=4, columns=4).tolist()
    [[-8.0, 1.0, 7.0, 0.0]]
    >>> q = quantize(np.array([[-1.0, 1.0, 14.0, 0.4]], np.float32), bits=4, block_size=4, asymmetric=True)
    >>> q.scales.tolist(), q.zeros.tolist(), dequantize(q, bits=4, columns=4).tolist()
    ([[1.0]], [[1]], [[-1.0, 1.0, 14.0, 0.0]])
    """
    if bits not in (2, 4, 8) or block_size * bits % 8:
        raise ValueError(
            "bits must be 2, 4 or 8 and block_size * bits a multiple of 8; "
            f"found bits {bits}, block_size {block_size}"
        )
    rows, columns = weight.shape
    blocks = -(-columns // block_size)
    if columns != blocks * block_size:
        weight = np.pad(weight, ((0, 0), (0, blocks * block_size - columns)))
    blocked = weight.reshape(rows, blocks, block_size)
    make = Grid.asymmetric if asymmetric else Grid.symmetric
    grid = make(_reduced(np.maximum, blocked), _reduced(np.minimum, blocked), bits, scale_dtype)
    codes = grid[..., None].round(blocked)
    codes += grid.zeros[..., None]
    zeros = grid.zeros.astype(np.uint8) if asymmetric else None
    return Quantized(pack(codes.astype(np.uint8), bits), grid.scales.astype(scale_dtype), zeros)


def dequantize(quantized: Quantized, bits: int, columns: int) -> Floats:
    """Return the float32 matrix [N, columns] = (code - zero) * scale."""
    zeros = quantized.zeros
    zero = np.float32(1 << (bits - 1)) if zeros is None else zeros.astype(np.float32)[..., None]
    codes = _unpacked(quantized.codes, bits).astype(np.float32) - zero
    values = codes * quantized.scales.astype(np.float32)[..., None]
    return values.reshape(len(values), -1)[:, :columns]


def signed(codes: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Convert packed codes with zero point 2^(bits-1) to two's complement: flip the top bit of each.

    >>> [f"{byte:02x}" for byte in signed(np.array([0x90, 0x8F], np.uint8), bits=4)]
    ['18', '07']
    """
    top_bits = sum(1 << position for position in range(bits - 1, 8, bits))
    return codes ^ np.uint8(top_bits)


@dataclass(frozen=True, slots=True)
class QuantizedChannels:
    """A matrix [N, K] as int8 codes [N, K] in -127 .. 127 and one float32 scale per row [N]."""

    codes: NDArray[np.int8]
    scales: NDArray[np.float32]


def quantize_channels(weight: Floats) -> QuantizedChannels:
    """Quantize per output channel (row) to 8 bits: scale = max |w| / 127, code = round(w / scale).

    weight: float32 [N, K]. A row of zeros has scale 0. |w - code * scale| <= scale / 2.

    >>> q = quantize_channels(np.array([[15.875, -0.3, 6.0], [0, 0, 0]], np.float32))
    >>> q.codes.tolist(), q.scales.tolist()
    ([[127, -2, 48], [0, 0, 0]], [0.125, 0.0])
    """
    scales = channel_scales(weight)
    inverse = np.divide(1, scales, out=np.zeros_like(scales), where=scales != 0)
    codes = np.rint(weight * inverse[:, None])
    return QuantizedChannels(np.clip(codes, -127, 127).astype(np.int8), scales)


def channel_scales(weight: Floats) -> Floats:
    """Return max |w| / 127 of each row, float32 [N]; subnormal scales become 0."""
    return _storable(np.abs(weight).max(axis=1, initial=0) / np.float32(127), np.float32)


def pack(codes: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Pack codes [..., columns] into [..., columns * bits / 8], the first column in the lowest bits."""
    per_byte = 8 // bits
    packed = codes[..., 0::per_byte].copy()
    for place in range(1, per_byte):
        packed |= codes[..., place::per_byte] << (place * bits)
    return packed


def _reduced(extreme: np.ufunc, blocks: Floats) -> Floats:
    """Reduce each block [..., size] by comparing its halves, three times as fast as numpy's reduction."""
    while blocks.shape[-1] % 2 == 0:
        half = blocks.shape[-1] // 2
        blocks = extreme(blocks[..., :half], blocks[..., half:])
    reduced: Floats = extreme.reduce(blocks, axis=-1)
    return reduced


def _storable(scales: NDArray[np.floating], scale_dtype: ScaleType) -> Floats:
    with np.errstate(over="ignore"):  # the caller raises if a scale overflows its type
        stored: Floats = scales.astype(scale_dtype).astype(np.float32)
    stored[np.abs(stored) < np.finfo(np.float32).tiny] = 0  # 1 / subnormal overflows
    return stored


def _unpacked(codes: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    per_byte = 8 // bits
    places = [(codes >> (place * bits)) & ((1 << bits) - 1) for place in range(per_byte)]
    return np.stack(places, axis=-1).reshape(*codes.shape[:-1], -1)
