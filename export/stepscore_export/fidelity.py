"""Compares two ways of scoring: log-probs, log-ratios, rewards, decisions. Pure arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stepscore.evaluation.first_error import first_error

Floats = NDArray[np.float64]
Ends = NDArray[np.int64]
"""Indices into the log-probs at which the steps of one sequence end."""
Scores = Sequence[tuple[Floats, Floats]]
"""Policy and reference log-probs [L-1] of each sequence, nats."""


@dataclass(frozen=True, slots=True)
class FidelityMetrics:
    """Errors of one way of scoring against another, over all tokens and steps of a set of sequences.

    num_tokens: scored tokens, L - 1 of a sequence of L. ratio_rms: RMS of the true log-ratio, nats.
    logprob_rms, logprob_max: RMS and maximum of the error of both models' log-probs, nats.
    ratio_error: RMS of the error of the log-ratio over tokens / RMS of the true log-ratio.
    step_error: the same of step rewards, which are log-ratios summed over a step (beta cancels).
    cumulative_error: the same of cumulative rewards, summed from the first token to a step's end.
    correlation: Pearson's, of the log-ratios, over tokens.
    step_signs: share of steps whose reward has the same sign.
    first_errors: share of sequences with the same first step whose reward is below the threshold.
    """

    num_sequences: int
    num_tokens: int
    num_steps: int
    ratio_rms: float
    logprob_rms: float
    logprob_max: float
    ratio_error: float
    step_error: float
    cumulative_error: float
    correlation: float
    step_signs: float
    first_errors: float


def fidelity(
    scores: Scores, truth: Scores, step_ends: Sequence[Ends], threshold: float | None = None
) -> FidelityMetrics:
    """Compare `scores` with `truth`; the threshold is in nats, on the log-ratio summed over one step.

    The default threshold is `halving_threshold(truth, step_ends)`, where agreement is hardest.

    A relative error is 0 where both sides are 0 throughout (identical checkpoints) and infinite where only
    the truth is. If a side is constant, the correlation is 1 where both are equal, else 0.

    scores, truth: N >= 1 sequences of finite float64. step_ends: int64 [n], n >= 1, of each sequence.
    Raises ValueError for no sequences, or different lengths.

    >>> truth = [(np.array([-1.0, -2.0, -2.0]), np.array([-2.0, -2.0, -1.0]))]  # log-ratios 1, 0, -1
    >>> found = fidelity([(np.array([-1.0, -2.0, -2.5]), truth[0][1])], truth, [np.array([0, 2])], 0.0)
    >>> found.num_tokens, found.num_steps, found.logprob_max
    (3, 2, 0.5)
    >>> round(found.ratio_error**2, 3), round(found.step_error**2, 3), found.cumulative_error
    (0.125, 0.125, 0.5)
    >>> found.step_signs, found.first_errors
    (1.0, 1.0)
    """
    if not len(scores) == len(truth) == len(step_ends) > 0:
        raise ValueError(
            f"{len(scores)} scored sequences, {len(truth)} true ones and {len(step_ends)} step ends"
        )
    lengths, true_lengths = ([[len(row) for row in pair] for pair in rows] for rows in (scores, truth))
    if lengths != true_lengths:
        raise ValueError("scores and truth have sequences with different numbers of log-probs")
    error = _flat([np.concatenate(pair) for pair in scores]) - _flat([np.concatenate(pair) for pair in truth])
    ratios, true_ratios = (_flat([policy - ref for policy, ref in rows]) for rows in (scores, truth))
    sums, true_sums = (cumulative_sums(rows, step_ends) for rows in (scores, truth))
    steps, true_steps = step_sums(scores, step_ends), step_sums(truth, step_ends)
    if threshold is None:
        threshold = halving_threshold(truth, step_ends)
    decisions, true_decisions = (
        [first_error(row, threshold) for row in rows] for rows in (steps, true_steps)
    )
    return FidelityMetrics(
        num_sequences=len(truth),
        num_tokens=true_ratios.size,
        num_steps=sum(map(len, true_steps)),
        ratio_rms=_rms(true_ratios),
        logprob_rms=_rms(error),
        logprob_max=float(np.abs(error).max()),
        ratio_error=_relative(ratios, true_ratios),
        step_error=_relative(_flat(steps), _flat(true_steps)),
        cumulative_error=_relative(_flat(sums), _flat(true_sums)),
        correlation=_correlation(ratios, true_ratios),
        step_signs=float(np.mean(np.sign(_flat(steps)) == np.sign(_flat(true_steps)))),
        first_errors=float(np.mean(np.equal(decisions, true_decisions))),
    )


def cumulative_sums(scores: Scores, step_ends: Sequence[Ends]) -> list[Floats]:
    """Sum the log-ratio from the first token to each step's end: cumulative rewards without beta.

    >>> cumulative_sums([(np.array([1.0, 2.0, 4.0, 8.0]), np.zeros(4))], [np.array([1, 3])])
    [array([ 3., 15.])]
    """
    return [
        np.cumsum(policy - reference)[ends]
        for (policy, reference), ends in zip(scores, step_ends, strict=True)
    ]


def step_sums(scores: Scores, step_ends: Sequence[Ends]) -> list[Floats]:
    """Sum the log-ratio over each step, the first one from the first token: step rewards without beta.

    >>> step_sums([(np.array([1.0, 2.0, 4.0, 8.0]), np.zeros(4))], [np.array([1, 3])])
    [array([ 3., 12.])]
    """
    return [np.diff(sums, prepend=0.0) for sums in cumulative_sums(scores, step_ends)]


def halving_threshold(truth: Scores, step_ends: Sequence[Ends]) -> float:
    """Return a threshold on step sums, in nats, such that half of the sequences have a step below it.

    It is the midpoint of the two middle ones of the sequences' smallest step sums, sorted: their median if N
    is even. If N is odd it is between the median and the next lower one: the last bit would decide at a
    threshold equal to a sum. 0 for a single sequence.

    >>> rows = [(np.array([1.0, low]), np.zeros(2)) for low in (-5.0, 0.0, -1.0, -3.0)]
    >>> ends = [np.array([0, 1])] * 4
    >>> halving_threshold(rows, ends), halving_threshold(rows[:3], ends[:3])
    (-2.0, -3.0)
    """
    smallest = np.sort([sums.min() for sums in step_sums(truth, step_ends)])
    middle = len(smallest) // 2
    return float(smallest[middle - 1 : middle + 1].mean()) if middle else 0.0


def as_float64(scores: Sequence[tuple[NDArray[np.floating], NDArray[np.floating]]]) -> Scores:
    """Convert the runtime's log-probs, so that differences are computed in float64."""
    return [(policy.astype(np.float64), reference.astype(np.float64)) for policy, reference in scores]


def _flat(rows: Sequence[Floats]) -> Floats:
    return np.concatenate(rows)


def _rms(values: Floats) -> float:
    return float(np.sqrt(np.mean(values**2)))


def _relative(values: Floats, truth: Floats) -> float:
    error, size = _rms(values - truth), _rms(truth)
    if size == 0:
        return 0.0 if error == 0 else float("inf")
    return error / size


def _correlation(values: Floats, truth: Floats) -> float:
    if np.ptp(values) == 0 or np.ptp(truth) == 0:
        return float(np.array_equal(values, truth))
    return float(np.clip(np.corrcoef(values, truth)[0, 1], -1, 1))
