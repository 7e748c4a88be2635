"""Figures of a result from seconds and log-probs: medians, spreads, errors, verdicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import msgspec
import numpy as np
from benchmarks.peers.contender import SequenceLogprobs
from numpy.typing import NDArray

from stepscore.bench import Rate


def rounded(speed: Rate) -> dict[str, float]:
    """Return a rate as a result holds it, rounded to two decimals.

    >>> rounded(Rate(median=3.14159, slowest=3.0, fastest=3.2, n=3))
    {'median': 3.14, 'slowest': 3.0, 'fastest': 3.2, 'n': 3}
    """
    return {name: round(value, 2) for name, value in msgspec.structs.asdict(speed).items()}


def log_ratios(logprobs: Sequence[SequenceLogprobs]) -> NDArray[np.float64]:
    """Return policy - reference of all tokens, one sequence after the other, float64, nats."""
    return np.concatenate([policy.astype(np.float64) - reference for policy, reference in logprobs])


def ratio_error(logprobs: Sequence[SequenceLogprobs], truth: Sequence[SequenceLogprobs]) -> float:
    """Return the relative RMS error of the log-ratio: sqrt(mean (r - t)^2 / mean t^2).

    >>> scored = [(np.array([-1.0, -2.2]), np.array([-2.0, -1.0]))]
    >>> truth = [(np.array([-1.0, -2.0]), np.array([-2.0, -1.0]))]
    >>> round(ratio_error(scored, truth), 4)
    0.1414
    """
    true = log_ratios(truth)
    return float(np.sqrt(np.mean((log_ratios(logprobs) - true) ** 2) / np.mean(true**2)))


@dataclass(frozen=True, slots=True)
class Aim:
    """Least speed of the default form relative to another engine, on a workload."""

    workload: str
    against: str
    at_least: float


def verdict(aim: Aim, default: Rate, peer: Rate) -> dict[str, Any]:
    """Return the ratio of the medians, and whether it reaches the aim.

    >>> aim = Aim("one solution", "transformers", 2.2)
    >>> verdict(aim, Rate(30.0, 30.0, 30.0, 1), Rate(10.0, 10.0, 10.0, 1))
    {'workload': 'one solution', 'against': 'transformers', 'at_least': 2.2, 'ratio': 3.0, 'reached': True}
    """
    ratio = round(default.median / peer.median, 3)
    return {**asdict(aim), "ratio": ratio, "reached": ratio >= aim.at_least}


def percentiles(seconds: Sequence[float]) -> Mapping[str, float]:
    """Return p50, p90 and p99, linearly interpolated, in seconds.

    >>> percentiles([1.0, 2.0, 3.0])
    {'p50': 2.0, 'p90': 2.8, 'p99': 2.98}
    """
    return {f"p{p}": round(float(np.percentile(seconds, p)), 5) for p in (50, 90, 99)}
