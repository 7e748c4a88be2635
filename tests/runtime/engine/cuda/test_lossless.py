"""A damaged lossless difference is found before anything is read or written out of bounds."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from stepscore.engine.cuda.lossless import CHUNK, LosslessDifference, decode, ordered
from stepscore.errors import ModelInvalid
from stepscore_export.quantization.lossless import encode, joined

ROWS, COLUMNS = 6, 21


@pytest.fixture
def reference() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 1 << 16, (ROWS, COLUMNS), dtype=np.uint16)


@pytest.fixture
def difference(reference: np.ndarray) -> LosslessDifference:
    """Row 3 has changes, near ones and two escapes; the others have a near one each."""
    steps = np.zeros_like(reference)
    steps[:, 5] = 2
    steps[3, [7, 9, 11]] = 1, 300, 400
    policy = ordered(ordered(reference).view(np.uint16) + steps).view(np.uint16)
    return joined([encode(reference, policy)])


def test_flag_without_a_code_names_its_row(reference: np.ndarray, difference: LosslessDifference) -> None:
    flags = difference.flags.copy()
    flags[3, 0] |= 7
    with pytest.raises(ModelInvalid, match="row 3 has 4 bytes of codes, but its starts leave room for 2"):
        decode(reference, replace(difference, flags=flags), reference.copy())


def test_code_that_became_an_escape_names_its_row(
    reference: np.ndarray, difference: LosslessDifference
) -> None:
    codes = difference.codes.copy()
    codes[difference.starts[2, 0]] = 15
    with pytest.raises(ModelInvalid, match="row 2 has 1 escapes, but its starts leave room for 0"):
        decode(reference, replace(difference, codes=codes), reference.copy())


@pytest.mark.parametrize("row", range(ROWS + 1))
@pytest.mark.parametrize("column", [0, 1])
@pytest.mark.parametrize("value", [-(2**31), -1, 9, 100, 2**31 - 1])
def test_other_start_is_rejected(
    reference: np.ndarray, difference: LosslessDifference, row: int, column: int, value: int
) -> None:
    starts = difference.starts.copy()
    starts[row, column] = value
    with pytest.raises(ModelInvalid, match="the difference of a matrix is damaged"):
        decode(reference, replace(difference, starts=starts), reference.copy())


@pytest.mark.parametrize("shift", [-1, 1])
def test_starts_that_are_all_shifted_are_rejected_in_the_first_of_many_chunks(shift: int) -> None:
    zeros = np.zeros((3, CHUNK), np.uint16)
    difference = joined([encode(zeros, zeros + np.eye(3, CHUNK, dtype=np.uint16))])
    starts = difference.starts.copy()
    starts[:-1, 0] += shift
    with pytest.raises(ModelInvalid, match="its rows go from"):
        decode(zeros, replace(difference, starts=starts), zeros.copy())


@pytest.mark.parametrize("name", ["codes", "escapes"])
def test_shortened_array_is_rejected(
    reference: np.ndarray, difference: LosslessDifference, name: str
) -> None:
    short = replace(difference, **{name: getattr(difference, name)[:-1]})
    with pytest.raises(ModelInvalid, match="its rows go from"):
        decode(reference, short, reference.copy())


def test_bits_behind_the_last_column_and_behind_the_last_code_mean_nothing(
    reference: np.ndarray, difference: LosslessDifference
) -> None:
    expected, found = reference.copy(), reference.copy()
    decode(reference, difference, expected)
    flags, codes = difference.flags.copy(), difference.codes.copy()
    flags[:, -1] |= 0xE0
    codes[difference.starts[0, 0]] |= 0xF0
    decode(reference, replace(difference, flags=flags, codes=codes), found)
    np.testing.assert_array_equal(found, expected)


def test_policy_replaces_the_reference_where_it_is_written_over_it(
    reference: np.ndarray, difference: LosslessDifference
) -> None:
    expected = np.empty_like(reference)
    decode(reference, difference, expected)
    decode(reference, difference, reference)
    np.testing.assert_array_equal(reference, expected)
