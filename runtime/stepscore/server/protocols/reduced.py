"""Choose the one number that remote reward routes answer with, by the path, since their bodies have no room.

The path alone means the outcome reward; /min, /mean and /last after it reduce the step rewards.
"""

from __future__ import annotations

from statistics import fmean

from stepscore.enums import Reducer
from stepscore.records import Result

REDUCERS = (None, Reducer.MIN, Reducer.MEAN, Reducer.LAST)
"""None is the outcome reward, which is the sum of the step rewards."""


def reduced(result: Result, reducer: Reducer | None) -> float:
    """Return the reward of a solution, in units of beta times nats.

    With r the step rewards [n]: min(r), sum(r) / n or r[n - 1]; without a reducer the outcome reward.
    """
    match reducer:
        case Reducer.MIN:
            return min(result.step_rewards)
        case Reducer.MEAN:
            return fmean(result.step_rewards)
        case Reducer.LAST:
            return result.step_rewards[-1]
        case _:
            return result.outcome_reward


def suffix(reducer: Reducer | None) -> str:
    """Return what a reducer adds to a path."""
    return "" if reducer is None else f"/{reducer.value}"


def described(reducer: Reducer | None) -> str:
    """Return the name of the number in the summary of a route."""
    return "the outcome reward" if reducer is None else f"the {reducer.value} of the step rewards"
