"""Choose the one number that remote reward routes answer with, by the path, since their bodies have no room.

The path alone means the outcome reward; a name after it is that of a score, as `stepscore select` writes it.
"""

from __future__ import annotations

import enum

import numpy as np

from stepscore.enums import Series
from stepscore.results import Result
from stepscore.rewards import read_series


class Score(enum.StrEnum):
    """Score of a solution, `<series>-<reducer>`."""

    OUTCOME = "cumulative-last"
    """The outcome reward."""
    STEP_MIN = "step-min"
    """The lowest step reward."""
    STEP_MEAN = "step-mean"
    """The mean of the step rewards."""
    MEAN_LAST = "mean-last"
    """The outcome reward over the number of tokens that it sums."""

    def of(self, result: Result) -> float:
        """Return the score of a solution, in units of beta times nats; `mean-last` is per token."""
        match self:
            case Score.OUTCOME:
                return result.outcome_reward
            case Score.STEP_MIN:
                return min(result.step_rewards)
            case Score.STEP_MEAN:
                return float(np.mean(result.step_rewards))
            case Score.MEAN_LAST:
                counts = np.array(result.step_ends) - result.first_summed + 1
                means = read_series(Series.MEAN, result.cumulative_rewards, result.step_rewards, counts)
                return float(means[-1])

    @property
    def suffix(self) -> str:
        """Return what the score adds to a path."""
        return "" if self is Score.OUTCOME else f"/{self.value}"

    @property
    def summary(self) -> str:
        """Return the name of the number in the summary of a route."""
        return "outcome reward" if self is Score.OUTCOME else f"score {self.value}"
