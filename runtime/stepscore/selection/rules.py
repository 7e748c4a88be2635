"""Select one of several samples by their scores: best-of-N, voting. Pure."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np

from stepscore.rewards import Scores, finite_scores

Answers = Sequence[Hashable] | np.ndarray

_WEIGHT_UNIT = 2.0**40  # weights are integer multiples of 2^-40 of the largest: their sums are exact


def best_of_n(scores: Scores) -> int:
    """Return the index of the sample with the highest score; ties go to the earliest.

    scores: float [N], N >= 1. Raises ValueError when there is none, or one is not finite.

    >>> best_of_n([0.1, 0.7, 0.7])
    1
    """
    return int(finite_scores(scores).argmax())


def weighted_best_of_n(scores: Scores, answers: Answers, *, temperature: float = 1.0) -> int:
    """Return the index of the earliest sample that gives the answer with the most weight.

    The weight of an answer is the sum over the samples that give it::

        weight(a) = sum(sigmoid(scores[i] / temperature) for i with answers[i] == a)

    Ties go to the answer seen first; sums are compared in units of 2^-40 of the largest weight, so that
    rounding decides no tie. At beta = 0.001 all weights are near 1/2 unless rewards reach hundreds of nats,
    which is majority voting: set the temperature to the size of a typical score.

    scores: float [N]. answers: N hashable values, equal for equal answers; None does not vote.
    Raises ValueError when lengths differ, a score is not finite, the temperature is not above 0 or no sample
    has an answer. Source: the weighted best-of-N of the EurusPRM evaluation.

    >>> weighted_best_of_n([2.0, -1.0, -1.0], ["7", "8", "8"])
    0
    >>> weighted_best_of_n([2.0, -1.0, -1.0], ["7", "8", "8"], temperature=100.0)
    1
    """
    codes = answer_codes(answers)
    return _elected(vote_weights(scores, codes, temperature), codes)


def majority(answers: Answers) -> int:
    """Return the index of the earliest sample with the most common answer; ties go to the answer seen first.

    answers: N hashable values, equal for equal answers; None does not vote. Raises ValueError when no
    sample has an answer.

    >>> majority(["8", "7", None, "7", "8"])
    0
    """
    codes = answer_codes(answers)
    return _elected(np.ones(codes.size, dtype=np.int64), codes)


def answer_codes(answers: Answers) -> np.ndarray:
    """Number the distinct answers in order of appearance; None is -1. Returns int64 [N].

    >>> answer_codes(["8", None, "7", "8"]).tolist()
    [0, -1, 1, 0]
    """
    numbers: dict[Hashable, int] = {}
    codes = [-1 if answer is None else numbers.setdefault(answer, len(numbers)) for answer in answers]
    return np.array(codes, dtype=np.int64)


def vote_weights(scores: Scores, codes: np.ndarray, temperature: float) -> np.ndarray:
    """Return sigmoid(scores / temperature) in units of 2^-40 of the largest with an answer; int64 [N]."""
    if not 0 < temperature < np.inf:
        raise ValueError(f"the temperature is {temperature}; it must be a finite number above 0")
    values = finite_scores(scores)
    if values.shape != codes.shape:
        raise ValueError(f"{values.size} scores, but {codes.size} answers")
    voting = codes >= 0
    logs = -np.logaddexp(0.0, -values / temperature)
    logs = np.where(voting, logs - logs[voting].max(initial=-np.inf), -np.inf)
    weights: np.ndarray = np.rint(np.exp(logs) * _WEIGHT_UNIT).astype(np.int64)
    return weights


def elect(weights: np.ndarray, codes: np.ndarray, ballots: np.ndarray) -> np.ndarray:
    """Return the winner of every ballot: its first sample whose answer has the most weight in it.

    weights, codes: int64 [N], code -1: no answer. ballots: int [S, n], samples in ascending order. Returns
    int [S], the index of a sample, -1 where no sample of the ballot has an answer.
    """
    rows = np.arange(len(ballots))
    given = codes[ballots]
    totals = np.zeros(
        (len(ballots), int(codes.max(initial=-1)) + 2), dtype=np.int64
    )  # the last is for code -1
    for column in range(ballots.shape[1]):
        totals[rows, given[:, column]] += weights[ballots[:, column]]
    support = np.where(given >= 0, totals[rows[:, None], given], -1)
    first = support.argmax(axis=1)
    return np.where(support[rows, first] >= 0, ballots[rows, first], -1)


def _elected(weights: np.ndarray, codes: np.ndarray) -> int:
    if not (codes >= 0).any():
        raise ValueError("no sample has an answer")
    return int(elect(weights, codes, np.arange(codes.size)[None])[0])
