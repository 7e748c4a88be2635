"""Compute rewards from log-ratios and step ends. Pure arithmetic on one record."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from stepscore.errors import NonFinite

Scores = Sequence[float] | np.ndarray
"""Finite values [n], one per step or per sample; higher is better."""


@dataclass(frozen=True, slots=True)
class Rewards:
    """Rewards of n steps, in units of beta times nats."""

    cumulative_rewards: np.ndarray  # float64 [n], the card's `beta_reward`
    step_rewards: np.ndarray  # float64 [n], first differences
    outcome_reward: float  # the last cumulative one


def rewards(log_ratios: np.ndarray, step_ends: np.ndarray, *, beta: float, start: int) -> Rewards:
    """Return the rewards of an implicit process reward model, read at one token per step.

    With r[j] = log p_policy(F[j+1] | F[..j]) - log p_reference(F[j+1] | F[..j])::

        cumulative_rewards[k] = beta * sum(r[start : step_ends[k] + 1])
        step_rewards[k]       = cumulative_rewards[k] - cumulative_rewards[k - 1],  first one from 0
        outcome_reward        = cumulative_rewards[n - 1]

    Hence sum(step_rewards) = outcome_reward, equal models give exactly 0, and swapping the models flips every
    sign. Sums are accumulated in float64. Steps that end at the same token have equal cumulative rewards.

    log_ratios: float32 or float64 [L-1], nats. step_ends: int [n], n >= 1, indices into log_ratios.
    start: index of the first log-ratio summed (`EncodedPrompt.first_summed`).

    Raises NonFinite when a log-ratio is NaN or infinite or beta makes a reward so; ValueError when there is
    no step, or a step ends before start or after the last log-ratio.

    Source: the usage code of the EurusPRM-Stage2 model card; beta is its `coef`.

    >>> r = rewards(np.array([9.0, 1.0, 2.0, -4.0]), np.array([2, 3]), beta=0.5, start=1)
    >>> r.cumulative_rewards.tolist(), r.step_rewards.tolist(), r.outcome_reward
    ([1.5, -0.5], [1.5, -2.0], -0.5)
    """
    if not np.isfinite(log_ratios).all():
        raise NonFinite(f"log-ratio {int(np.flatnonzero(~np.isfinite(log_ratios))[0])} is NaN or infinite")
    if step_ends.size == 0 or start < 0 or step_ends.min() < start or step_ends.max() >= log_ratios.size:
        raise ValueError(f"step ends {step_ends.tolist()} are not within {start}..{log_ratios.size - 1}")
    sums = np.cumsum(log_ratios[start:], dtype=np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        cumulative = beta * sums[step_ends - start]
        steps = np.diff(cumulative, prepend=0.0)
    if not (np.isfinite(cumulative) & np.isfinite(steps)).all():
        raise NonFinite(f"a reward is infinite with beta {beta:g}")
    return Rewards(cumulative, steps, float(cumulative[-1]))
