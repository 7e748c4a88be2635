"""Choosing one of N samples, against a plain re-implementation in exact arithmetic; ties included."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from stepscore import aggregate, best_of_n, majority, weighted_best_of_n
from stepscore.enums import Reducer

# Few distinct values and answers: ties are the rule.
SCORE = st.sampled_from([-2.0, -0.5, 0.0, 0.5, 2.0]) | st.floats(-50, 50)
SCORES = st.lists(SCORE, min_size=1, max_size=8)
SAMPLES = st.lists(st.tuples(SCORE, st.sampled_from(["7", "8", "9", None])), min_size=1, max_size=9)


def split(samples: list[tuple[float, str | None]]) -> tuple[list[float], list[str | None]]:
    assume(any(answer is not None for _, answer in samples))
    return [score for score, _ in samples], [answer for _, answer in samples]


def plain_winner(weights: list[Fraction], answers: list[str | None]) -> int:
    """The first sample whose answer has the largest sum of weights."""
    sums: dict[str, Fraction] = {}
    for weight, answer in zip(weights, answers, strict=True):
        if answer is not None:
            sums[answer] = sums.get(answer, Fraction(0)) + weight
    return next(at for at, a in enumerate(answers) if a is not None and sums[a] == max(sums.values()))


# One score


@given(SCORES, st.sampled_from(list(Reducer)))
def test_a_score_is_the_last_lowest_mean_sum_or_highest_reward(scores: list[float], reducer: Reducer) -> None:
    plain = {
        Reducer.LAST: scores[-1],
        Reducer.MIN: min(scores),
        Reducer.MEAN: math.fsum(scores) / len(scores),
        Reducer.SUM: math.fsum(scores),
        Reducer.MAX: max(scores),
    }
    assert aggregate(scores, reducer) == pytest.approx(plain[reducer], rel=1e-12, abs=1e-12)
    assert aggregate(np.array(scores), reducer.value) == aggregate(scores, reducer)


def test_prod_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="prod is not supported: rewards are signed"):
        aggregate([-1.0, -2.0], "prod")


@pytest.mark.parametrize("scores", [[], [math.nan], [1.0, math.inf], [[1.0], [2.0]]])
def test_a_score_needs_finite_rewards(scores: list[float]) -> None:
    with pytest.raises(ValueError, match=r"score"):
        aggregate(scores, Reducer.LAST)


# Best of N


@given(SCORES)
def test_the_best_is_the_earliest_of_the_highest(scores: list[float]) -> None:
    assert best_of_n(scores) == scores.index(max(scores))


# Voting


@given(SAMPLES)
def test_the_majority_is_the_most_common_answer_first_seen(samples: list[tuple[float, str | None]]) -> None:
    _, answers = split(samples)
    assert majority(answers) == plain_winner([Fraction(1)] * len(answers), answers)


@given(SAMPLES, st.sampled_from([0.1, 1.0, 30.0]))
def test_the_weighted_choice_has_the_largest_sum_of_sigmoids(
    samples: list[tuple[float, str | None]], temperature: float
) -> None:
    scores, answers = split(samples)
    weights = [1 / (1 + math.exp(-score / temperature)) for score in scores]
    largest = max(weight for weight, answer in zip(weights, answers, strict=True) if answer is not None)
    rounded = [Fraction(round(weight / largest * 2**30)) for weight in weights]  # coarser than what is tested
    chosen, plain = (
        weighted_best_of_n(scores, answers, temperature=temperature),
        plain_winner(rounded, answers),
    )
    sums = [
        math.fsum(w for w, a in zip(weights, answers, strict=True) if a == answers[at])
        for at in (chosen, plain)
    ]
    assert sums[0] == pytest.approx(sums[1], abs=len(samples) * largest * 2.0**-29)
    assert chosen == answers.index(answers[chosen])


@given(st.permutations([0.3, -0.2, 0.7, 0.1]), st.permutations([0.3, -0.2, 0.7, 0.1]))
def test_rounding_decides_no_tie(ours: list[float], theirs: list[float]) -> None:
    """The same scores in another order weigh the same."""
    assert weighted_best_of_n([*ours, *theirs], ["a"] * 4 + ["b"] * 4) == 0


@given(SAMPLES)
def test_equal_scores_make_a_weighted_choice_the_majority(samples: list[tuple[float, str | None]]) -> None:
    _, answers = split(samples)
    assert weighted_best_of_n([-0.3] * len(answers), answers) == majority(answers)


def test_a_low_temperature_lets_scores_far_below_zero_count() -> None:
    assert weighted_best_of_n([-1.0, -2.0, -2.0], ["7", "8", "8"], temperature=1e-4) == 0


def test_answers_may_be_an_array() -> None:
    assert majority(np.array([4, 5, 5])) == 1


@pytest.mark.parametrize("answers", [[], [None, None]])
def test_voting_needs_an_answer(answers: list[str | None]) -> None:
    with pytest.raises(ValueError, match="no sample has an answer"):
        majority(answers)


@pytest.mark.parametrize(
    ("scores", "temperature", "message"),
    [([1.0], 1.0, "1 scores, but 2 answers"), ([1.0, 2.0], 0.0, "temperature"), ([1, math.nan], 1.0, "NaN")],
)
def test_weighted_rejects_invalid_input(scores: list[float], temperature: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        weighted_best_of_n(scores, ["7", "8"], temperature=temperature)
