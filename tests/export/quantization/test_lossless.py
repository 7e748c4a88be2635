"""The lossless difference: what is encoded comes back bit for bit, in the bits that it says."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from numpy.typing import NDArray

from stepscore.engine.cuda.lossless import CHUNK, LosslessDifference, decode, ordered
from stepscore_export.quantization.lossless import EncodedRows, bits_per_weight, encode, joined

Patterns = NDArray[np.uint16]

# +-0, +-1, +-infinity and NaNs of both signs with payloads, as bf16 and as fp16.
SPECIAL = [0, 0x8000, 0x3F80, 0xBF80, 0x7F80, 0xFF80, 0x7FC0, 0xFFFF, 0x3C00, 0xBC00, 0x7C00, 0xFC00, 0x7E01]


@st.composite
def pairs(draw: st.DrawFn) -> tuple[Patterns, Patterns]:
    """Two matrices: the second is the first, a few steps away, or far away."""
    shape = draw(st.tuples(st.integers(0, 5), st.integers(0, 37)))
    anything = st.integers(0, 0xFFFF) | st.sampled_from(SPECIAL)
    reference = draw(npst.arrays(np.uint16, shape, elements=anything))
    steps = draw(
        npst.arrays(np.uint16, shape, elements=st.just(0) | st.integers(-9, 9).map(lambda n: n % 65536))
    )
    policy = ordered(ordered(reference).view(np.uint16) + steps).view(np.uint16)
    far = draw(npst.arrays(np.bool_, shape, elements=st.sampled_from([False, False, False, True])))
    return reference, np.where(far, draw(npst.arrays(np.uint16, shape, elements=anything)), policy)


def rebuilt(reference: Patterns, difference: LosslessDifference) -> Patterns:
    policy = np.full_like(reference, 0xABCD)
    decode(reference, difference, policy)
    return policy


def many(rows: int, columns: int) -> tuple[Patterns, Patterns]:
    random = np.random.default_rng(rows)
    reference = random.integers(0, 1 << 16, (rows, columns), dtype=np.uint16)
    near = random.integers(0, 4, reference.shape, dtype=np.uint16)
    other = random.integers(0, 1 << 16, reference.shape, dtype=np.uint16)
    return reference, np.where(
        near == 3, other, ordered(ordered(reference).view(np.uint16) + near).view(np.uint16)
    )


@given(pairs())
def test_policy_comes_back_bit_for_bit_for_any_patterns(pair: tuple[Patterns, Patterns]) -> None:
    reference, policy = pair
    np.testing.assert_array_equal(rebuilt(reference, joined([encode(reference, policy)])), policy)


@pytest.mark.parametrize("shape", [(0, 5), (3, 0), (CHUNK // 64, 131), (2, CHUNK + 1)])
def test_policy_comes_back_bit_for_bit_in_several_chunks_or_none(shape: tuple[int, int]) -> None:
    reference, policy = many(*shape)
    np.testing.assert_array_equal(rebuilt(reference, joined([encode(reference, policy)])), policy)


@given(pairs(), st.integers(0, 5))
def test_blocks_of_rows_join_to_the_code_of_the_whole_matrix(
    pair: tuple[Patterns, Patterns], cut: int
) -> None:
    reference, policy = pair
    whole = joined([encode(reference, policy)])
    parts = joined([encode(reference[:cut], policy[:cut]), encode(reference[cut:], policy[cut:])])
    for name in ("flags", "codes", "starts", "escapes"):
        np.testing.assert_array_equal(getattr(parts, name), getattr(whole, name))


@given(npst.arrays(np.uint16, st.tuples(st.integers(0, 5), st.integers(0, 37))))
def test_identical_models_have_no_flags_codes_or_escapes(patterns: Patterns) -> None:
    rows = encode(patterns, patterns.copy())
    assert not rows.flags.any()
    assert (rows.codes.size, rows.escapes.size, rows.unchanged) == (0, 0, patterns.size)


@given(pairs())
def test_bits_of_a_weight_are_those_of_the_arrays_stored(pair: tuple[Patterns, Patterns]) -> None:
    block = encode(*pair)
    whole = joined([block])
    stored = sum(getattr(whole, name).nbytes for name in ("flags", "codes", "starts", "escapes"))
    size = pair[0].size
    assert bits_per_weight([block]) == (8 * stored / size if size else 0)
    assert block.unchanged == np.count_nonzero(pair[0] == pair[1])


@pytest.mark.parametrize(("step", "bits"), [(0, 1), (1, 5), (-1, 5), (-7, 5), (8, 5), (-8, 21), (9, 21)])
def test_near_weights_take_five_bits_and_far_ones_their_pattern_too(step: int, bits: int) -> None:
    reference = np.full((4, 4096), 0x3F80, np.uint16)
    block = encode(reference, reference + np.uint16(step % 65536))
    assert bits_per_weight([block]) == bits + 8 * 8 * 5 / reference.size


def test_steps_across_zero_are_near() -> None:
    reference = np.array([[0x0002, 0x8001]], np.uint16)
    assert encode(reference, np.array([[0x8001, 0x0002]], np.uint16)).escapes.size == 0


def test_starts_beyond_32_bits_are_refused() -> None:
    none = np.zeros(0, np.uint8)
    counts = np.full(2, np.iinfo(np.int32).max - 1, np.int32)
    block = EncodedRows(none.reshape(0, 1), none, none.view(np.uint16), counts, np.zeros(2, np.int32), 8)
    joined([block])
    with pytest.raises(OverflowError, match="too many"):
        joined([block, block])


@given(npst.arrays(np.float16, 20, elements=st.floats(width=16, allow_nan=False)))
def test_order_of_patterns_is_the_order_of_values(values: NDArray[np.float16]) -> None:
    places = ordered(values.view(np.uint16))
    np.testing.assert_array_equal(values[np.argsort(places)], np.sort(values))


def test_order_of_patterns_is_a_bijection_and_its_own_inverse() -> None:
    patterns = np.arange(1 << 16, dtype=np.uint16)
    places = ordered(patterns)
    np.testing.assert_array_equal(np.sort(places), np.arange(-(1 << 15), 1 << 15))
    np.testing.assert_array_equal(ordered(places.view(np.uint16)).view(np.uint16), patterns)
