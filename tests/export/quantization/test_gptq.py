"""Rounding with error feedback: nearest where inputs are unrelated, nearer in products where they are not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from testing.hypothesis_profiles import examples

from stepscore_export.quantization import gptq as feedback
from stepscore_export.quantization.gptq import (
    DAMPING,
    GROUP,
    Hessian,
    quantize_channels_with_feedback,
    quantize_with_feedback,
)
from stepscore_export.quantization.rounding import (
    Floats,
    QuantizedChannels,
    dequantize,
    pack,
    quantize,
    quantize_channels,
)

ROWS = 24
COLUMNS = [64, 128, 150, 300]
"""Half a group, a group, no multiple of a group nor of a block, three groups."""

every_width = pytest.mark.parametrize("columns", COLUMNS)
every_form = pytest.mark.parametrize(
    ("bits", "block_size", "asymmetric"),
    [(2, 32, False), (4, 16, False), (4, 32, True), (8, 32, False), (8, 128, True)],
)


def drawn(columns: int, rows: int = ROWS, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).standard_normal((rows, columns), dtype=np.float32)


def correlated(columns: int, rows: int = 400, seed: int = 1) -> Floats:
    """Inputs that share eight directions, so that an error can be made up for."""
    shared = drawn(8, rows, seed) @ drawn(columns, 8, seed + 1)
    return shared + np.float32(0.3) * drawn(columns, rows, seed + 2)


def error_propagation_of(rows: Floats, group: int = GROUP) -> Floats:
    moments = Hessian(rows.shape[1], group)
    moments.add(rows)
    return moments.error_propagation()


def identity(columns: int) -> Floats:
    """No input says anything of another."""
    return np.broadcast_to(np.eye(GROUP, dtype=np.float32), (-(-columns // GROUP), GROUP, GROUP)).copy()


def values_of(quantized: QuantizedChannels) -> Floats:
    return quantized.codes * quantized.scales[:, None]


def product_error(weight: Floats, values: Floats, rows: Floats) -> float:
    return float(np.linalg.norm(rows @ (weight - values).T))


# Error propagation


@given(st.lists(st.integers(0, 40), min_size=1, max_size=5))
def test_moments_added_in_parts_are_those_of_all_rows(lengths: list[int]) -> None:
    rows = correlated(150, sum(lengths))
    parts = Hessian(150)
    for part in np.split(rows, np.cumsum(lengths)[:-1]):
        parts.add(part)
    np.testing.assert_allclose(parts.error_propagation(), error_propagation_of(rows), rtol=0, atol=1e-3)


def test_the_inputs_that_were_added_stay_as_they_were() -> None:
    rows = correlated(150)
    moments = Hessian(150)
    moments.add(rows)
    first = moments.error_propagation()
    np.testing.assert_array_equal(rows, correlated(150))
    np.testing.assert_array_equal(moments.error_propagation(), first)


@every_width
def test_error_propagation_is_one_unit_triangular_matrix_per_group(columns: int) -> None:
    error_propagation = error_propagation_of(correlated(columns))
    assert (error_propagation.dtype, error_propagation.shape) == (
        np.float32,
        (-(-columns // GROUP), GROUP, GROUP),
    )
    np.testing.assert_allclose(np.einsum("gii->gi", error_propagation), 1)
    assert not np.tril(error_propagation, -1).any()


@pytest.mark.parametrize("column", [0, 5, 62])
def test_an_error_is_made_up_for_by_least_squares(column: int) -> None:
    """The columns behind take the change that moves the products least, by the damped moments."""
    rows = correlated(64).astype(np.float64)
    moments = rows.T @ rows
    moments += DAMPING * np.diagonal(moments).mean() * np.eye(64)
    behind = slice(column + 1, 64)
    best = np.linalg.solve(moments[behind, behind], moments[behind, column])
    found = error_propagation_of(rows.astype(np.float32))[0, column, behind]
    np.testing.assert_allclose(-found, best, rtol=0, atol=1e-4)


@pytest.mark.parametrize("rows", [np.zeros((5, 150), np.float32), np.zeros((0, 150), np.float32)])
def test_inputs_that_are_zero_propagate_no_error(rows: Floats) -> None:
    np.testing.assert_array_equal(error_propagation_of(rows), identity(150))


def test_a_column_that_is_always_zero_neither_sends_nor_receives_errors() -> None:
    rows = correlated(150)
    rows[:, 7] = 0
    error_propagation = error_propagation_of(rows)[0]
    np.testing.assert_array_equal(error_propagation[7], np.eye(GROUP)[7])
    np.testing.assert_array_equal(error_propagation[:, 7], np.eye(GROUP)[7])


@pytest.mark.parametrize("columns", [150, 300])
def test_groups_are_independent_of_each_other_and_of_padding(columns: int) -> None:
    rows = correlated(columns)
    alone = [error_propagation_of(rows[:, start : start + GROUP])[0] for start in range(0, columns, GROUP)]
    np.testing.assert_allclose(error_propagation_of(rows), np.stack(alone), rtol=0, atol=1e-6)
    padding = -columns % GROUP
    np.testing.assert_array_equal(error_propagation_of(rows)[-1][-padding:], np.eye(GROUP)[-padding:])


# Blocks


@every_form
@every_width
def test_uncorrelated_inputs_give_nearest_rounding(
    columns: int, bits: int, block_size: int, *, asymmetric: bool
) -> None:
    """To the bit: with an identity, and with moments that are exactly diagonal."""
    weight = drawn(columns)
    form = bits, block_size
    nearest = quantize(weight, *form, asymmetric=asymmetric)
    one_at_a_time = np.diag(np.linspace(0.5, 2, columns)).astype(np.float32)
    for error_propagation in (identity(columns), error_propagation_of(one_at_a_time)):
        found = quantize_with_feedback(weight, error_propagation, *form, asymmetric=asymmetric)
        np.testing.assert_array_equal(found.codes, nearest.codes)
        np.testing.assert_array_equal(found.scales, nearest.scales)
        if nearest.zeros is None:
            assert found.zeros is None
        else:
            np.testing.assert_array_equal(found.zeros, nearest.zeros)


def test_white_noise_changes_few_codes() -> None:
    """As far as the moments of a sample are diagonal."""
    weight, error_propagation = drawn(150), error_propagation_of(drawn(150, 50_000, seed=1))
    found, nearest = quantize_with_feedback(weight, error_propagation, 4, 32), quantize(weight, 4, 32)
    apart = np.abs(dequantize(found, 4, 150) - dequantize(nearest, 4, 150))
    assert np.mean(apart > 0.02) < 0.05  # a step is about 0.3


@every_form
@every_width
def test_gptq_has_the_layout_of_nearest_rounding(
    columns: int, bits: int, block_size: int, *, asymmetric: bool
) -> None:
    weight, error_propagation = drawn(columns), error_propagation_of(correlated(columns))
    for scale_dtype in (np.float32, np.float16):
        nearest = quantize(weight, bits, block_size, scale_dtype, asymmetric=asymmetric)
        found = quantize_with_feedback(
            weight, error_propagation, bits, block_size, scale_dtype, asymmetric=asymmetric
        )
        assert _form(found.codes) == _form(nearest.codes)
        assert _form(found.scales) == _form(nearest.scales)
        assert (found.zeros is None) == (nearest.zeros is None)
        if found.zeros is not None and nearest.zeros is not None:
            assert _form(found.zeros) == _form(nearest.zeros)


def _form(array: NDArray[Any]) -> tuple[Any, ...]:
    return array.dtype, array.shape


@every_form
def test_the_first_block_of_a_group_has_the_scales_of_nearest_rounding(
    bits: int, block_size: int, *, asymmetric: bool
) -> None:
    """Nothing has been carried over to it yet, and nothing is from another group."""
    weight, error_propagation = drawn(300), error_propagation_of(correlated(300))
    found = quantize_with_feedback(weight, error_propagation, bits, block_size, asymmetric=asymmetric)
    nearest = quantize(weight, bits, block_size, asymmetric=asymmetric)
    step = GROUP // block_size
    np.testing.assert_array_equal(found.scales[:, ::step], nearest.scales[:, ::step])


@every_form
@every_width
def test_products_with_correlated_inputs_are_nearer_than_those_of_nearest_rounding(
    columns: int, bits: int, block_size: int, *, asymmetric: bool
) -> None:
    weight, rows = drawn(columns), correlated(columns)
    form = {"bits": bits, "block_size": block_size, "asymmetric": asymmetric}
    found = quantize_with_feedback(weight, error_propagation_of(rows), **form)
    errors = [
        product_error(weight, dequantize(each, bits, columns), rows)
        for each in (found, quantize(weight, **form))
    ]
    assert errors[0] < 0.8 * errors[1]


@every_form
@examples(10)
@given(seed=st.integers(0, 1000), size=st.sampled_from([1e-3, 1.0, 1e3]))
def test_every_code_fits_its_bits(
    seed: int, size: float, bits: int, block_size: int, *, asymmetric: bool
) -> None:
    """What was carried over may lie beyond the grid; a code that did would spoil its neighbour's."""
    weight = drawn(150, 5, seed) * np.float32(size)
    seen: list[NDArray[np.uint8]] = []

    def packed(codes: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
        seen.append(codes)
        return pack(codes, bits)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(feedback, "pack", packed)
        error_propagation = error_propagation_of(correlated(150, seed=seed))
        quantize_with_feedback(weight, error_propagation, bits, block_size, asymmetric=asymmetric)
    (codes,) = seen
    assert codes.max() <= 2**bits - 1


@every_form
@every_width
def test_zeros_stay_zero(columns: int, bits: int, block_size: int, *, asymmetric: bool) -> None:
    weight = np.zeros((3, columns), np.float32)
    found = quantize_with_feedback(
        weight, error_propagation_of(correlated(columns)), bits, block_size, asymmetric=asymmetric
    )
    np.testing.assert_array_equal(dequantize(found, bits, columns), weight)


def test_rows_are_rounded_independently() -> None:
    """So a matrix may be rounded a row block at a time."""
    weight, error_propagation = drawn(150), error_propagation_of(correlated(150))
    whole = quantize_with_feedback(weight, error_propagation, 4, 32)
    parts = [quantize_with_feedback(part, error_propagation, 4, 32) for part in np.split(weight, [5, 6])]
    joined = np.concatenate([dequantize(part, 4, 150) for part in parts])
    # sums of another number of rows differ in the last bits: that may move a code here and there
    assert np.mean(np.abs(dequantize(whole, 4, 150) - joined) > 1e-5) < 0.01


def test_the_weight_stays_as_it_was() -> None:
    weight = drawn(128)
    quantize_with_feedback(weight, error_propagation_of(correlated(128)), 4, 32)
    quantize_channels_with_feedback(weight, error_propagation_of(correlated(128)))
    np.testing.assert_array_equal(weight, drawn(128))


def test_a_block_may_be_as_wide_as_its_group() -> None:
    weight, rows = drawn(300), correlated(300)
    found = quantize_with_feedback(weight, error_propagation_of(rows, group=256), 4, 256)
    nearest = quantize(weight, 4, 256)
    assert found.codes.shape == nearest.codes.shape
    errors = [product_error(weight, dequantize(each, 4, 300), rows) for each in (found, nearest)]
    assert errors[0] < 0.8 * errors[1]


# Channels


@every_width
def test_channels_without_correlation_are_nearest(columns: int) -> None:
    weight = drawn(columns)
    found, nearest = quantize_channels_with_feedback(weight, identity(columns)), quantize_channels(weight)
    np.testing.assert_array_equal(found.codes, nearest.codes)
    np.testing.assert_array_equal(found.scales, nearest.scales)


@every_width
def test_channels_keep_layout_and_scales_and_are_nearer_in_products(columns: int) -> None:
    weight, rows = drawn(columns), correlated(columns)
    found = quantize_channels_with_feedback(weight, error_propagation_of(rows))
    nearest = quantize_channels(weight)
    assert _form(found.codes) == _form(nearest.codes) == (np.int8, (ROWS, columns))
    assert found.codes.flags.c_contiguous
    np.testing.assert_array_equal(found.scales, nearest.scales)
    errors = [product_error(weight, values_of(each), rows) for each in (found, nearest)]
    assert errors[0] < 0.8 * errors[1]


@examples(10)
@given(seed=st.integers(0, 1000))
def test_channel_codes_are_never_minus_128(seed: int) -> None:
    """Rows at the end of the scale throughout: what is carried over pushes them beyond it."""
    weight = np.sign(drawn(150, 5, seed)) * np.float32(0.999) ** np.arange(150, dtype=np.float32)
    found = quantize_channels_with_feedback(weight, error_propagation_of(correlated(150, seed=seed)))
    assert found.codes.min() >= -127
    np.testing.assert_array_equal(np.sign(found.codes[:, :2]), np.sign(weight[:, :2]))


def test_a_row_of_zeros_stays_zero_in_a_channel() -> None:
    weight = drawn(150)
    weight[3] = 0
    found = quantize_channels_with_feedback(weight, error_propagation_of(correlated(150)))
    assert not found.codes[3].any()
    assert found.scales[3] == 0
