"""Compute rewards from log-ratios and step ends. Pure arithmetic on one record."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np
from numpy.typing import NDArray

from stepscore.enums import Reducer, Series
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


def read_series(
    series: Series, cumulative_rewards: Scores, step_rewards: Scores, num_summed: Sequence[int] | np.ndarray
) -> NDArray[np.float64]:
    """Return one value per step, in the reading `series` of the rewards of a solution.

    With t[k] = step_ends[k] - first_summed + 1, the number of log-ratios that cumulative_rewards[k] sums::

        cumulative[k]      = cumulative_rewards[k]
        step[k]            = step_rewards[k]
        mean[k]            = cumulative_rewards[k] / t[k]
        mean-difference[k] = mean[k] - mean[k - 1],  first one from 0

    Hence the values of `mean-difference` sum to the last mean, as those of `step` do to the outcome reward.

    By the conventions `response` and `exact`, and for token ids, t counts the tokens of the response up to
    the step's end, and `mean` is the length-normalized prefix value of IPVRM. By `card` the sum holds the
    prompt's log-ratios, so the prompt's tokens count too: the mean is one over prompt and response.

    cumulative_rewards, step_rewards: float [n], n >= 1, in units of beta times nats; a mean is in these units
    per token. num_summed: t, int [n], each at least 1. Raises ValueError when the shapes differ, or a count
    is below 1.

    Source: the training code of IPVRM (arXiv 2604.13197), which normalizes prefix values so and cites the
    paper's equation 9, and the paper's abstract: step signals are differences of consecutive prefix values.
    IPVRM's ProcessBench script divides by t - 1, and what it calls `mean_diff` is another reading: the reward
    of a step over the number of that step's own tokens.

    >>> read_series(Series.MEAN, [2.0, -1.0], [2.0, -3.0], [4, 5]).tolist()
    [0.5, -0.2]
    >>> read_series(Series.MEAN_DIFFERENCE, [2.0, -1.0], [2.0, -3.0], [4, 5]).tolist()
    [0.5, -0.7]
    """
    cumulative, steps = (np.asarray(given, np.float64) for given in (cumulative_rewards, step_rewards))
    counts = np.asarray(num_summed, np.int64)
    if not cumulative.shape == steps.shape == counts.shape:
        raise ValueError(f"{cumulative.size} cumulative and {steps.size} step rewards, {counts.size} counts")
    if (counts < 1).any():
        raise ValueError(f"the numbers of summed log-ratios are {counts.tolist()}; each must be at least 1")
    match series:
        case Series.CUMULATIVE:
            return cumulative
        case Series.STEP:
            return steps
        case Series.MEAN:
            return cumulative / counts
        case Series.MEAN_DIFFERENCE:
            return np.diff(cumulative / counts, prepend=0.0)


@overload
def probability(values: float, temperature: float = 1.0) -> float: ...


@overload
def probability(values: Scores, temperature: float = 1.0) -> NDArray[np.float64]: ...


def probability(values: float | Scores, temperature: float = 1.0) -> float | NDArray[np.float64]:
    """Return rewards as probabilities, by the sigmoid.

    ::

        probability(v) = sigmoid(v / temperature) = 1 / (1 + exp(-v / temperature))

    The order of values is kept, 0 gives 1/2, and log(p / (1 - p)) * temperature gives the value back, up to
    rounding; above 37 temperatures the result is 1 and the value is lost, below -745 it is 0.

    An implicit PRM is trained so that the sigmoid of its outcome reward is the probability of a right answer,
    and IPVRM so that the sigmoid of every `mean` is, both at the beta of the training. At another beta,
    such as the card's 0.001, temperature = beta / (beta of the training) gives the same probabilities.

    values: float or float [...], in units of beta times nats. temperature: the same unit. Returns a float, or
    float64 [...]. Raises ValueError when a value is not finite, or the temperature is not a finite number
    above 0.

    Source: the cross-entropy loss of Implicit PRM (Yuan et al., 2024) and of IPVRM (arXiv 2604.13197).

    >>> probability(0.0), probability([-0.02, 0.02], temperature=0.01).round(4).tolist()
    (0.5, [0.1192, 0.8808])
    """
    if not 0 < temperature < np.inf:
        raise ValueError(f"the temperature is {temperature}; it must be a finite number above 0")
    logits = np.asarray(values, np.float64) / temperature
    if not np.isfinite(logits).all():
        raise ValueError("a value is NaN or infinite")
    result = np.exp(-np.logaddexp(0.0, -logits))
    return result if np.ndim(values) else float(result)


def aggregate(scores: Scores, reducer: Reducer | str) -> float:
    """Reduce the scores of the steps to one score of the solution: last, lowest, mean, sum or highest.

    scores: float [n], n >= 1, any unit: cumulative or step rewards. The result is called <series>-<reducer>:
    `cumulative-last` is the outcome reward, and so is `step-sum`. Raises ValueError when there is no score,
    one is not finite, or the reducer is unknown; `prod` is rejected, since the product of two negative
    rewards is positive. Source: the best-of-N evaluation of EurusPRM (the minimum for Stage 1, the
    cumulative rewards for Stage 2).

    >>> [aggregate([0.5, -1.0, 0.25], reducer) for reducer in ("last", "min", "mean", "sum", "max")]
    [0.25, -1.0, -0.08333333333333333, -0.25, 0.5]
    """
    values = finite_scores(scores)
    match Reducer(reducer):
        case Reducer.LAST:
            return float(values[-1])
        case Reducer.MIN:
            return float(values.min())
        case Reducer.MEAN:
            return float(values.mean())
        case Reducer.SUM:
            return float(values.sum())
        case Reducer.MAX:
            return float(values.max())


def finite_scores(scores: Scores) -> np.ndarray:
    """Return scores as float64 [n]; raise ValueError where there is none, or one is not finite."""
    values = np.asarray(scores, dtype=np.float64)
    if values.ndim != 1 or not values.size:
        raise ValueError("needs at least one score, in one dimension")
    if not np.isfinite(values).all():
        raise ValueError("a score is NaN or infinite")
    return values
