"""What `quantize` promises of the codes and scales it makes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from numpy.typing import NDArray
from testing.matrices import BITS, BLOCK_SIZES, Weight, per_column, weights

from stepscore_export.quantization.rounding import (
    Grid,
    dequantize,
    pack,
    quantize,
    quantize_channels,
    signed,
)


@given(weights(), BITS, BLOCK_SIZES, st.sampled_from([np.float32, np.float16]))
def test_error_is_at_most_one_step(
    weight: Weight, bits: int, block_size: int, scale_dtype: type[np.floating]
) -> None:
    # scales below 6e-5 are subnormal in fp16: less precise than the law says
    weight = np.where(np.abs(weight) < 0.01, 0, weight) if scale_dtype is np.float16 else weight
    quantized = quantize(weight, bits, block_size, scale_dtype)
    error = np.abs(weight - dequantize(quantized, bits, weight.shape[1]))
    rounded_scale = (1 << (bits - 1)) * float(np.finfo(scale_dtype).eps)
    assert np.all(error <= np.abs(per_column(quantized, block_size, weight.shape[1])) * (1 + rounded_scale))


@given(weights(), BITS, BLOCK_SIZES)
def test_error_is_at_most_half_a_step_except_opposite_the_largest(
    weight: Weight, bits: int, block_size: int
) -> None:
    quantized = quantize(weight, bits, block_size)
    scale = per_column(quantized, block_size, weight.shape[1])
    steps = np.divide(weight, scale, out=np.zeros_like(scale), where=scale != 0)
    inside = steps <= (1 << (bits - 1)) - 0.5
    error = np.abs(weight - dequantize(quantized, bits, weight.shape[1]))
    assert np.all((error <= np.abs(scale) * (0.5 + 1e-5))[inside])


@given(weights(), st.integers(1, 160))
def test_the_grid_is_that_of_numpys_extremes_for_any_block_size(weight: Weight, block_size: int) -> None:
    """However the extremes are found: halves of an odd block are not even."""
    blocks = np.pad(weight, ((0, 0), (0, -weight.shape[1] % block_size))).reshape(len(weight), -1, block_size)
    high, low = blocks.max(axis=-1), blocks.min(axis=-1)
    symmetric, asymmetric = (quantize(weight, 8, block_size, asymmetric=which) for which in (False, True))
    assert np.array_equal(symmetric.scales, Grid.symmetric(high, low, 8, np.float32).scales)
    grid = Grid.asymmetric(high, low, 8, np.float32)
    assert np.array_equal(asymmetric.scales, grid.scales)
    assert asymmetric.zeros is not None
    assert np.array_equal(asymmetric.zeros, grid.zeros)


@given(weights(), BITS, BLOCK_SIZES)
def test_zeros_stay_zero(weight: Weight, bits: int, block_size: int) -> None:
    restored = dequantize(quantize(weight, bits, block_size), bits, weight.shape[1])
    assert np.all(restored[weight == 0] == 0)


@given(weights(), BITS, BLOCK_SIZES)
def test_the_largest_of_a_block_is_kept(weight: Weight, bits: int, block_size: int) -> None:
    restored = dequantize(quantize(weight, bits, block_size), bits, weight.shape[1])
    for start in range(0, weight.shape[1], block_size):
        block, after = weight[:, start : start + block_size], restored[:, start : start + block_size]
        assert np.allclose(np.abs(block).max(axis=1), np.abs(after).max(axis=1), rtol=1e-6, atol=0)


@given(weights(), BITS, BLOCK_SIZES)
def test_a_matrix_of_codes_is_restored_exactly(weight: Weight, bits: int, block_size: int) -> None:
    """Quantising what was dequantised changes nothing: rounding happens once."""
    once = dequantize(quantize(weight, bits, block_size), bits, weight.shape[1])
    twice = dequantize(quantize(once, bits, block_size), bits, weight.shape[1])
    assert np.allclose(once, twice, rtol=1e-6, atol=0)


@given(weights(), BITS, BLOCK_SIZES)
def test_columns_are_padded_with_zeros(weight: Weight, bits: int, block_size: int) -> None:
    rows, columns = weight.shape
    padded = np.pad(weight, ((0, 0), (0, -columns % block_size)))
    ours, theirs = quantize(weight, bits, block_size), quantize(padded, bits, block_size)
    assert ours.codes.shape == (rows, -(-columns // block_size), block_size * bits // 8)
    assert np.array_equal(ours.codes, theirs.codes)
    assert np.array_equal(ours.scales, theirs.scales)


@given(weights(), BITS, BLOCK_SIZES)
def test_rows_are_rounded_independently(weight: Weight, bits: int, block_size: int) -> None:
    whole = quantize(weight, bits, block_size)
    for index in range(len(weight)):
        alone = quantize(weight[index : index + 1], bits, block_size)
        assert np.array_equal(alone.codes[0], whole.codes[index])
        assert np.array_equal(alone.scales[0], whole.scales[index])


@given(
    npst.arrays(np.float32, (2, 40), elements=st.floats(-(2**-123), 2**-123, width=32)),
    BITS,
    BLOCK_SIZES,
)
def test_tiny_and_subnormal_values_never_overflow(weight: Weight, bits: int, block_size: int) -> None:
    restored = dequantize(quantize(weight, bits, block_size), bits, weight.shape[1])
    assert np.all(np.isfinite(restored))
    assert np.all(np.abs(restored - weight) <= np.abs(weight).max() + np.finfo(np.float32).tiny)


@given(weights(), BITS)
def test_scales_have_the_type_that_was_asked_for(weight: Weight, bits: int) -> None:
    assert quantize(weight, bits, 32, np.float16).scales.dtype == np.float16


def test_four_bit_codes_lie_two_in_a_byte_even_column_low() -> None:
    weight = np.array([[-8, -7, *range(-6, 8)]], np.float32)
    quantized = quantize(weight, 4, 16)
    assert quantized.scales.tolist() == [[1.0]]
    assert quantized.codes.ravel().tolist() == [low | (low + 1) << 4 for low in range(0, 16, 2)]


def test_two_bit_codes_lie_four_in_a_byte_the_first_column_lowest() -> None:
    quantized = quantize(np.array([[-2, -1, 0, 1] * 4], np.float32), 2, 16)
    assert quantized.scales.tolist() == [[1.0]]
    assert quantized.codes.ravel().tolist() == [0b11_10_01_00] * 4


@given(npst.arrays(np.uint8, (2, 8)), BITS)
def test_signed_codes_are_the_same_numbers_in_twos_complement(values: NDArray[np.uint8], bits: int) -> None:
    codes = values >> (8 - bits)
    half = 1 << (bits - 1)
    twos_complement = ((codes.astype(np.int64) - half) % (1 << bits)).astype(np.uint8)
    assert np.array_equal(signed(pack(codes, bits), bits), pack(twos_complement, bits))


@pytest.mark.parametrize(("bits", "block_size"), [(3, 32), (16, 32), (4, 31)])
def test_other_layouts_are_refused(bits: int, block_size: int) -> None:
    with pytest.raises(ValueError, match="bits must be 2, 4 or 8"):
        quantize(np.ones((1, 32), np.float32), bits, block_size)


@given(weights(), BITS, BLOCK_SIZES)
def test_an_asymmetric_grid_is_at_most_one_step_off_and_keeps_zeros(
    weight: Weight, bits: int, block_size: int
) -> None:
    quantized = quantize(weight, bits, block_size, asymmetric=True)
    restored = dequantize(quantized, bits, weight.shape[1])
    scale = per_column(quantized, block_size, weight.shape[1])
    assert np.all(np.abs(weight - restored) <= scale * (1 + 1e-5))
    assert np.all(restored[weight == 0] == 0)


@given(weights(), BITS, BLOCK_SIZES)
def test_an_asymmetric_grid_of_one_sign_wastes_no_code(weight: Weight, bits: int, block_size: int) -> None:
    """Its step is half that of a symmetric one, or nearly: 2^bits - 1 steps for what were 2^(bits - 1)."""
    of_one_sign = np.abs(weight)
    symmetric = quantize(of_one_sign, bits, block_size)
    asymmetric = quantize(of_one_sign, bits, block_size, asymmetric=True)
    shrunk = (1 << (bits - 1)) / ((1 << bits) - 1)
    assert np.allclose(asymmetric.scales, np.abs(symmetric.scales) * shrunk, rtol=1e-6, atol=0)
    assert asymmetric.zeros is not None
    assert not asymmetric.zeros.any()


# One scale a row


@given(weights())
def test_channels_are_at_most_half_a_step_off(weight: Weight) -> None:
    channels = quantize_channels(weight)
    step = channels.scales.astype(np.float64)[:, None]
    assert np.all(np.abs(weight - channels.codes * step) <= step * (0.5 + 1e-5))


@given(weights())
def test_codes_of_channels_reach_127_and_never_minus_128(weight: Weight) -> None:
    channels = quantize_channels(weight)
    largest = np.abs(channels.codes.astype(np.int64)).max(axis=1)
    assert np.array_equal(largest, np.where(weight.any(axis=1), 127, 0))


@given(weights())
def test_a_channel_of_zeros_has_scale_zero(weight: Weight) -> None:
    weight[0] = 0
    channels = quantize_channels(weight)
    assert channels.scales[0] == 0
    assert not channels.codes[0].any()


@given(npst.arrays(np.float32, (2, 40), elements=st.floats(-(2**-123), 2**-123, width=32)))
def test_channels_of_tiny_and_subnormal_values_never_overflow(weight: Weight) -> None:
    channels = quantize_channels(weight)
    restored = channels.codes * channels.scales[:, None]
    assert np.all(np.abs(restored - weight) <= 128 * np.finfo(np.float32).tiny)
