"""How far one way of scoring is from another: log-probs, log-ratios, decisions. Pure arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from parity_tests.reference import Logprobs

from stepscore.select import first_error

Ends = npt.NDArray[np.int64]
Scores = Sequence[tuple[Logprobs, Logprobs]]  # policy and reference log-probs [L-1] of each sequence


@dataclass(frozen=True)
class Fidelity:
    """One way of scoring against another, over all tokens and steps of a set of sequences.

    logprob_rms, logprob_max: error of the log-probs of both models, nats.
    ratio_error: rms(error of policy - reference) / rms(policy - reference), over tokens.
    step_error: the same of the steps' rewards, which are sums of the ratio over a step (beta cancels).
    step_signs: share of steps whose reward has the same sign.
    first_errors: share of sequences with the same first step whose reward is below the threshold, or none.
    """

    logprob_rms: float
    logprob_max: float
    ratio_error: float
    step_error: float
    step_signs: float
    first_errors: float


def fidelity(scores: Scores, truth: Scores, step_ends: Sequence[Ends], threshold: float = 0.0) -> Fidelity:
    """Compare `scores` with `truth`; the threshold is in nats, on the log-ratio summed over one step."""
    error = _flat([np.concatenate(pair) for pair in scores]) - _flat([np.concatenate(pair) for pair in truth])
    ratios, true_ratios = ([policy - reference for policy, reference in rows] for rows in (scores, truth))
    steps, true_steps = step_sums(scores, step_ends), step_sums(truth, step_ends)
    decisions, true_decisions = (
        [first_error(row, threshold) for row in rows] for rows in (steps, true_steps)
    )
    return Fidelity(
        logprob_rms=_rms(error),
        logprob_max=float(np.abs(error).max()),
        ratio_error=_rms(_flat(ratios) - _flat(true_ratios)) / _rms(_flat(true_ratios)),
        step_error=_rms(_flat(steps) - _flat(true_steps)) / _rms(_flat(true_steps)),
        step_signs=float(np.mean(np.sign(_flat(steps)) == np.sign(_flat(true_steps)))),
        first_errors=float(np.mean(np.equal(decisions, true_decisions))),
    )


def step_sums(scores: Scores, step_ends: Sequence[Ends]) -> list[Logprobs]:
    """The log-ratio summed over each step, the first one from the first token: step rewards without beta.

    >>> step_sums([(np.array([1.0, 2.0, 4.0, 8.0]), np.zeros(4))], [np.array([1, 3])])
    [array([ 3., 12.])]
    """
    return [
        np.diff(np.cumsum(policy - reference)[ends], prepend=0.0)
        for (policy, reference), ends in zip(scores, step_ends, strict=True)
    ]


def as_float64(scores: Sequence[tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]]) -> Scores:
    """The runtime's log-probs, so that differences are taken in float64."""
    return [(policy.astype(np.float64), reference.astype(np.float64)) for policy, reference in scores]


def _flat(rows: Sequence[Logprobs]) -> Logprobs:
    return np.concatenate(rows)


def _rms(values: Logprobs) -> float:
    return float(np.sqrt(np.mean(values**2)))
