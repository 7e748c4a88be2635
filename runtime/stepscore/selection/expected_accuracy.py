"""Expected accuracy of selecting among n of N samples, and its confidence interval. Pure.

From N samples per problem, the expected accuracy with n <= N is the mean over all subsets of n samples. For
pass@n, best-of-N and a random sample it has a closed form. For voting it is computed by enumeration of all
subsets where they are few, and over a seeded random draw where they are many. Both are unbiased.
"""

from __future__ import annotations

from functools import cache
from itertools import combinations
from math import comb

import numpy as np

from stepscore.rewards import Scores
from stepscore.selection.rules import elect

MOST_SUBSETS = 1000
RESAMPLES = 2000
LEVEL = 0.95
_ROWS_AT_A_TIME = 100


def pass_at_n(correct: np.ndarray, n: int) -> float:
    """Return the probability that a random subset of n samples contains a correct one.

    With c of N samples correct::

        1 - C(N - c, n) / C(N, n)

    correct: bool [N], 1 <= n <= N. Source: Chen et al., 2021 (pass@k).

    >>> pass_at_n(np.array([True, False, False]), 2)
    0.6666666666666667
    """
    total = _checked(correct, n)
    return 1.0 - comb(total - int(correct.sum()), n) / comb(total, n)


def best_of_n_accuracy(scores: Scores, correct: np.ndarray, n: int) -> float:
    """Return the probability that the best of n random samples is correct; ties go to the earliest.

    The sample at rank r (0 is the highest score, the earliest of equals first) is the best of a subset when
    the other n - 1 come from the N - 1 - r below it::

        sum(correct[rank r] * C(N - 1 - r, n - 1) for r in 0..N-1) / C(N, n)

    scores: float [N]; correct: bool [N]; 1 <= n <= N.

    >>> best_of_n_accuracy([0.9, 0.5, 0.1], np.array([False, True, True]), 2)
    0.3333333333333333
    """
    total = _checked(correct, n)
    ranking = np.argsort(-np.asarray(scores, dtype=np.float64), kind="stable")
    ways = sum(comb(total - 1 - rank, n - 1) for rank, at in enumerate(ranking) if correct[at])
    return ways / comb(total, n)


def voting_accuracy(
    weights: np.ndarray, codes: np.ndarray, correct: np.ndarray, ballots: np.ndarray
) -> float:
    """Return the share of ballots whose winner (`rules.elect`) is correct; a ballot without one is not.

    weights, codes: int64 [N]; correct: bool [N]; ballots: int [S, n], as `subsets` gives them.

    >>> codes, votes = np.array([0, 1, 1]), np.ones(3, dtype=np.int64)
    >>> voting_accuracy(votes, codes, np.array([True, False, False]), subsets(3, 2))
    0.6666666666666666
    """
    winners = elect(weights, codes, ballots)
    return float((correct[winners] & (winners >= 0)).mean())


@cache
def subsets(total: int, n: int, *, most: int = MOST_SUBSETS, seed: int = 0) -> np.ndarray:
    """Return all subsets of n of `total` samples if there are at most `most`, else `most` random ones.

    Returns int [S, n], read only, each row ascending.

    >>> subsets(3, 2).tolist()
    [[0, 1], [0, 2], [1, 2]]
    >>> subsets(40, 20).shape
    (1000, 20)
    """
    if comb(total, n) <= most:
        return _read_only(np.array(list(combinations(range(total), n))))
    shuffled = np.random.default_rng(seed).random((most, total)).argsort(axis=1)
    return _read_only(np.sort(shuffled[:, :n], axis=1))


def bootstrap(values: np.ndarray, *, resamples: int = RESAMPLES, seed: int = 0) -> np.ndarray:
    """Return 95 % bootstrap confidence intervals of means over problems (percentile method).

    values: float [P, M], M figures of P problems; a resample draws the same problems for every figure.
    Returns float [2, M], low and high. Problems are resampled, their samples are not: the interval does not
    include the variance of drawing other samples of the same problems.

    >>> bootstrap(np.array([[1.0], [1.0]])).tolist()
    [[1.0], [1.0]]
    """
    rng = np.random.default_rng(seed)
    problems = len(values)
    means = []
    for start in range(0, resamples, _ROWS_AT_A_TIME):
        rows = min(_ROWS_AT_A_TIME, resamples - start)
        means.append(values[rng.integers(problems, size=(rows, problems))].mean(axis=1))
    tail = 100 * (1 - LEVEL) / 2
    interval: np.ndarray = np.percentile(np.concatenate(means), [tail, 100 - tail], axis=0)
    return interval


def _read_only(array: np.ndarray) -> np.ndarray:
    array.setflags(write=False)
    return array


def _checked(correct: np.ndarray, n: int) -> int:
    if not 1 <= n <= correct.size:
        raise ValueError(f"n is {n}, but there are {correct.size} samples")
    return int(correct.size)
