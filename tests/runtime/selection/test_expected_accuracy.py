"""Accuracy among n of N samples: closed forms are the mean over all subsets, drawn subsets are fair."""

from __future__ import annotations

from itertools import combinations
from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepscore.selection.expected_accuracy import (
    best_of_n_accuracy,
    bootstrap,
    pass_at_n,
    subsets,
    voting_accuracy,
)
from stepscore.selection.rules import answer_codes, best_of_n, majority, vote_weights, weighted_best_of_n

SAMPLE = st.tuples(st.sampled_from([-1.0, 0.0, 1.0]), st.sampled_from(["7", "8", "9"]), st.booleans())


@st.composite
def problems(draw: st.DrawFn) -> tuple[list[float], list[str], np.ndarray, int]:
    scores, answers, correct = zip(*draw(st.lists(SAMPLE, min_size=1, max_size=7)), strict=True)
    return list(scores), list(answers), np.array(correct), draw(st.integers(1, len(scores)))


@given(problems())
def test_each_accuracy_is_the_mean_over_all_subsets(
    problem: tuple[list[float], list[str], np.ndarray, int],
) -> None:
    scores, answers, correct, n = problem
    parts = list(combinations(range(len(scores)), n))
    codes = answer_codes(answers)
    some = [[scores[i] for i in part] for part in parts]
    given_ = [[answers[i] for i in part] for part in parts]

    def mean(chosen: list[int]) -> float:
        return float(np.mean([correct[part[at]] for part, at in zip(parts, chosen, strict=True)]))

    assert pass_at_n(correct, n) == pytest.approx(np.mean([correct[list(p)].any() for p in parts]))
    assert best_of_n_accuracy(scores, correct, n) == pytest.approx(mean([best_of_n(s) for s in some]))
    ballots = subsets(len(scores), n)
    plain = np.ones(len(scores), dtype=np.int64)
    assert voting_accuracy(plain, codes, correct, ballots) == mean([majority(a) for a in given_])
    assert voting_accuracy(vote_weights(scores, codes, 1.0), codes, correct, ballots) == mean(
        [weighted_best_of_n(s, a) for s, a in zip(some, given_, strict=True)]
    )


def test_a_ballot_without_an_answer_is_wrong() -> None:
    codes, correct = answer_codes([None, "7"]), np.array([True, True])
    votes = np.ones(2, dtype=np.int64)
    assert voting_accuracy(votes, codes, correct, subsets(2, 1)) == 0.5


def test_many_subsets_are_drawn_alike_with_one_seed_and_every_sample_as_often() -> None:
    drawn = subsets(40, 10, most=2000, seed=3)
    assert (drawn == subsets(40, 10, most=2000, seed=3)).all()
    assert (drawn != subsets(40, 10, most=2000, seed=4)).any()
    assert (np.diff(drawn, axis=1) > 0).all()  # ascending, none twice
    counts = np.bincount(drawn.ravel(), minlength=40)
    assert abs(counts - 500).max() < 6 * 20  # six standard deviations


@given(st.integers(1, 9), st.integers(1, 9))
def test_few_subsets_are_all_there(total: int, n: int) -> None:
    n = min(n, total)
    assert len({tuple(row) for row in subsets(total, n)}) == comb(total, n)


def test_an_interval_is_about_two_standard_errors_around_the_mean() -> None:
    values = np.repeat([0.0, 1.0], [40, 60])[:, None]
    low, high = bootstrap(values)[:, 0]
    error = 1.96 * (0.4 * 0.6 / 100) ** 0.5
    assert (low, high) == (pytest.approx(0.6 - error, abs=0.02), pytest.approx(0.6 + error, abs=0.02))
    assert (bootstrap(values) == bootstrap(values)).all()


def test_figures_share_their_resamples() -> None:
    values = np.random.default_rng(0).random((50, 1))
    low, high = bootstrap(np.hstack([values, values + 0.1, np.full((50, 1), 0.1)]))
    assert low[1] - low[0] == pytest.approx(0.1)
    assert (low[2], high[2]) == (pytest.approx(0.1), pytest.approx(0.1))


@pytest.mark.parametrize("n", [0, 3])
def test_more_samples_than_there_are_is_an_error(n: int) -> None:
    with pytest.raises(ValueError, match="there are 2 samples"):
        pass_at_n(np.array([True, False]), n)
