"""Log-ratios to cumulative and step rewards: the formula and the laws that follow from it."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepscore.enums import Series
from stepscore.errors import NonFinite
from stepscore.rewards import probability, read_series, rewards

RATIO = st.floats(-50, 50, width=32)


@st.composite
def records(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, int]:
    """Log-ratios, step ends inside them (equal and backward ones too, as the card has them), a start."""
    ratios = np.array(draw(st.lists(RATIO, min_size=1, max_size=60)), dtype=np.float32)
    start = draw(st.integers(0, ratios.size - 1))
    ends = draw(st.lists(st.integers(start, ratios.size - 1), min_size=1, max_size=8))
    return ratios, np.array(ends), start


@given(records(), st.floats(1e-4, 1))
def test_cumulative_reward_is_beta_times_the_sum_up_to_and_with_the_end(
    record: tuple[np.ndarray, np.ndarray, int], beta: float
) -> None:
    ratios, ends, start = record
    got = rewards(ratios, ends, beta=beta, start=start).cumulative_rewards
    plain = [beta * math.fsum(float(r) for r in ratios[start : end + 1]) for end in ends]
    np.testing.assert_allclose(got, plain, rtol=1e-12, atol=1e-12)


@given(records())
def test_step_rewards_sum_to_the_last_cumulative_reward_which_is_the_outcome(
    record: tuple[np.ndarray, np.ndarray, int],
) -> None:
    ratios, ends, start = record
    got = rewards(ratios, ends, beta=0.001, start=start)
    assert got.outcome_reward == got.cumulative_rewards[-1]
    np.testing.assert_allclose(np.cumsum(got.step_rewards), got.cumulative_rewards, rtol=0, atol=1e-14)


@given(records())
def test_equal_models_earn_exactly_zero(record: tuple[np.ndarray, np.ndarray, int]) -> None:
    ratios, ends, start = record
    got = rewards(ratios - ratios, ends, beta=0.001, start=start)
    assert not got.cumulative_rewards.any()
    assert not got.step_rewards.any()
    assert got.outcome_reward == 0


@given(records())
def test_swapping_the_models_flips_every_sign(record: tuple[np.ndarray, np.ndarray, int]) -> None:
    ratios, ends, start = record
    one, other = (rewards(sign * ratios, ends, beta=0.001, start=start) for sign in (1, -1))
    np.testing.assert_array_equal(one.cumulative_rewards, -other.cumulative_rewards)
    np.testing.assert_array_equal(one.step_rewards, -other.step_rewards)


@given(records(), st.lists(RATIO, min_size=1, max_size=10))
def test_appending_a_step_leaves_earlier_rewards_unchanged(
    record: tuple[np.ndarray, np.ndarray, int], more: list[float]
) -> None:
    ratios, ends, start = record
    longer = np.append(ratios, np.array(more, dtype=np.float32))
    one = rewards(ratios, ends, beta=0.001, start=start)
    other = rewards(longer, np.append(ends, longer.size - 1), beta=0.001, start=start)
    np.testing.assert_array_equal(one.step_rewards, other.step_rewards[:-1])


@given(records())
def test_a_later_start_moves_all_cumulative_rewards_by_one_constant(
    record: tuple[np.ndarray, np.ndarray, int],
) -> None:
    ratios, ends, start = record
    card = rewards(ratios, ends, beta=1, start=0).cumulative_rewards
    response = rewards(ratios, ends, beta=1, start=start).cumulative_rewards
    np.testing.assert_allclose(card - response, math.fsum(ratios[:start].tolist()), rtol=0, atol=1e-9)


def test_log_ratios_before_the_start_do_not_count() -> None:
    ratios = np.array([100.0, 1.0, 2.0], dtype=np.float32)
    assert rewards(ratios, np.array([2]), beta=1, start=1).outcome_reward == 3


def test_steps_with_one_end_share_a_cumulative_reward() -> None:
    got = rewards(np.array([1.0, 2.0]), np.array([1, 1]), beta=1, start=0)
    assert got.step_rewards.tolist() == [3, 0]


def test_sums_are_float64_whatever_comes_in() -> None:
    ratios = np.full(100_000, 0.1, dtype=np.float32)
    got = rewards(ratios, np.array([99_999]), beta=1, start=0)
    assert got.outcome_reward == pytest.approx(100_000 * float(np.float32(0.1)), rel=1e-12)
    assert got.cumulative_rewards.dtype == got.step_rewards.dtype == np.float64


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_non_finite_log_ratio_is_an_error_never_a_value(value: float) -> None:
    with pytest.raises(NonFinite, match="log-ratio 1"):
        rewards(np.array([0.0, value, 0.0]), np.array([2]), beta=1, start=0)


def test_a_beta_that_makes_a_reward_infinite_is_an_error_never_a_value() -> None:
    for ratios, ends in (([9.0, 9.0], [1]), ([1.0, -2.0], [0, 1])):
        with pytest.raises(NonFinite, match=r"infinite with beta 1e\+308"):
            rewards(np.array(ratios), np.array(ends), beta=1e308, start=0)


@pytest.mark.parametrize(("ends", "start"), [([], 0), ([3], 0), ([-1], 0), ([0, 1], 1), ([1], -1)], ids=str)
def test_end_outside_the_summed_log_ratios_is_an_error(ends: list[int], start: int) -> None:
    with pytest.raises(ValueError, match="are not within"):
        rewards(np.zeros(3), np.array(ends, dtype=np.int64), beta=1, start=start)


# Readings


@given(records())
def test_a_mean_is_that_of_the_log_ratios_summed_and_its_differences_sum_to_it(
    record: tuple[np.ndarray, np.ndarray, int],
) -> None:
    ratios, ends, start = record
    got = rewards(ratios, ends, beta=0.5, start=start)
    given = got.cumulative_rewards, got.step_rewards, ends - start + 1
    mean = read_series(Series.MEAN, *given)
    plain = [0.5 * float(np.mean(ratios[start : end + 1], dtype=np.float64)) for end in ends]
    np.testing.assert_allclose(mean, plain, rtol=1e-9, atol=1e-12)
    differences = read_series(Series.MEAN_DIFFERENCE, *given)
    np.testing.assert_allclose(np.cumsum(differences), mean, rtol=0, atol=1e-12)
    assert read_series(Series.CUMULATIVE, *given) is got.cumulative_rewards
    assert read_series(Series.STEP, *given) is got.step_rewards


@pytest.mark.parametrize(
    ("counts", "message"), [([3], "2 step rewards, 1 counts"), ([3, 0], r"\[3, 0\]; each must be at least 1")]
)
def test_a_mean_over_no_tokens_is_an_error(counts: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_series(Series.MEAN, [1.0, 2.0], [1.0, 1.0], counts)


@given(st.lists(st.floats(-20, 20), min_size=1), st.floats(1e-3, 1e3))
def test_the_log_odds_of_a_probability_are_the_value(values: list[float], temperature: float) -> None:
    scaled = np.array(values) * temperature
    found = probability(scaled, temperature)
    assert ((found > 0) & (found < 1)).all()
    np.testing.assert_allclose(np.log(found) - np.log1p(-found), values, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(found + probability(-scaled, temperature), 1, rtol=1e-15)
    assert [probability(float(value), temperature) for value in scaled] == found.tolist()


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False, width=32), min_size=2))
def test_probabilities_keep_the_order_and_never_overflow(values: list[float]) -> None:
    found = probability(sorted(values))
    assert (np.diff(found) >= 0).all()
    assert ((found >= 0) & (found <= 1)).all()


@pytest.mark.parametrize(
    ("value", "temperature"), [(math.nan, 1.0), (math.inf, 1.0), (1.0, 0.0), (1.0, -1.0), (1.0, math.nan)]
)
def test_no_probability_of_what_is_no_number(value: float, temperature: float) -> None:
    with pytest.raises(ValueError, match=r"NaN or infinite|above 0"):
        probability(value, temperature)
