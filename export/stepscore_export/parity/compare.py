"""Compares a pair's log-probs with PyTorch's, token by token. Pure arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stepscore.results import Result
from stepscore_export.fidelity import (
    FidelityMetrics,
    Scores,
    as_float64,
    fidelity,
    halving_threshold,
    step_sums,
)

Floats = NDArray[np.float64]

NUM_BINS = 25
BIN_VALUES = 50
"""Fewest tokens of a bin: a 90th percentile of fewer means little."""


@dataclass(frozen=True, slots=True)
class ScoredSolution:
    """One solution of L tokens and n steps, as scored by the pair."""

    line: int  # of the input, from 1
    token_ids: NDArray[np.int64]  # [L]: what both sides read
    logprobs: tuple[NDArray[np.float32], NDArray[np.float32]]  # the pair's, policy and reference, [L-1], nats
    step_ends: NDArray[np.int64]  # [n], indices into the log-probs
    start: int  # the first log-prob that the convention sums

    @classmethod
    def of(cls, line: int, result: Result, start: int) -> ScoredSolution:
        """Convert a result; ValueError unless its scorer keeps tokens."""
        ids, policy, reference = result.token_ids, result.policy_logprobs, result.reference_logprobs
        if ids is None or policy is None or reference is None:
            raise ValueError("the scorer must be loaded with tokens=True")
        return cls(line, ids, (policy, reference), np.array(result.step_ends, np.int64), start)


@dataclass(frozen=True, slots=True)
class Comparison:
    """Numbers of the report and of its plots, over T tokens and S steps of all solutions, concatenated.

    positions: int64 [T], index of the token in its solution. log_ratios: float64 [T], PyTorch's, nats;
    errors: the pair's minus PyTorch's. step_rewards, pytorch_step_rewards: float64 [S].
    """

    fidelity: FidelityMetrics
    threshold: float  # of first errors, on step rewards: half of the solutions fall below it in PyTorch
    positions: NDArray[np.int64]
    log_ratios: Floats
    errors: Floats
    step_rewards: Floats
    pytorch_step_rewards: Floats


@dataclass(frozen=True, slots=True)
class Profile:
    """Size of a value along the solutions: median and 90th percentile per bin, float64 [bins]."""

    positions: Floats
    median: Floats
    percentile90: Floats


def compare(solutions: Sequence[ScoredSolution], truth: Scores, *, beta: float) -> Comparison:
    """Compare the pair's log-probs with `truth`, PyTorch's of policy and reference, float64 [L-1] each.

    Only log-probs that the convention sums are compared: of every token (card), or of the response.
    """
    starts = [solution.start for solution in solutions]
    of_pair = _summed(as_float64([solution.logprobs for solution in solutions]), starts)
    of_pytorch = _summed(truth, starts)
    ends = [solution.step_ends - solution.start for solution in solutions]
    ratios, true_ratios = (
        np.concatenate([policy - reference for policy, reference in scores])
        for scores in (of_pair, of_pytorch)
    )
    threshold = halving_threshold(of_pytorch, ends)
    return Comparison(
        fidelity=fidelity(of_pair, of_pytorch, ends, threshold),
        threshold=beta * threshold,
        positions=np.concatenate([np.arange(s.start + 1, len(s.token_ids)) for s in solutions]),
        log_ratios=true_ratios,
        errors=ratios - true_ratios,
        step_rewards=beta * np.concatenate(step_sums(of_pair, ends)),
        pytorch_step_rewards=beta * np.concatenate(step_sums(of_pytorch, ends)),
    )


def is_finite(scores: tuple[Floats, Floats]) -> bool:
    """Return whether all log-probs of both models are finite."""
    return all(bool(np.isfinite(logprobs).all()) for logprobs in scores)


def profile(positions: NDArray[np.int64], values: Floats) -> Profile:
    """Summarize |values| in up to 25 bins of equal count along the positions.

    positions, values: [T], T >= 1, in any order. The position of a bin is the median of its positions.

    >>> found = profile(np.repeat([1, 9], 50), np.repeat([-2.0, 4.0], 50))
    >>> found.positions.tolist(), found.median.tolist(), found.percentile90.tolist()
    ([1.0, 9.0], [2.0, 4.0], [2.0, 4.0])
    """
    num_bins = min(max(len(values) // BIN_VALUES, 1), NUM_BINS)
    bins = np.array_split(np.argsort(positions, kind="stable"), num_bins)
    sizes = [np.abs(values[members]) for members in bins]
    return Profile(
        positions=np.array([np.median(positions[members]) for members in bins]),
        median=np.array([np.median(size) for size in sizes]),
        percentile90=np.array([np.quantile(size, 0.9) for size in sizes]),
    )


def _summed(scores: Scores, starts: Sequence[int]) -> Scores:
    return [
        (policy[start:], reference[start:]) for (policy, reference), start in zip(scores, starts, strict=True)
    ]
