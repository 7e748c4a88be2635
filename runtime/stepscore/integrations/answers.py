"""What an adapter asks of a scorer, and the one number per sample that a trainer reads."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from stepscore.enums import Reducer, Series
from stepscore.errors import InputError, NonFinite, StepscoreError
from stepscore.integrations.rollouts import Rollout
from stepscore.results import Result, TokenResult
from stepscore.rewards import aggregate, read_series
from stepscore.scheduling.async_scorer import AsyncScorer
from stepscore.scheduling.requests import Answer, Request

T = TypeVar("T")

logger = logging.getLogger("stepscore.integrations")


@dataclass(frozen=True, slots=True)
class Value:
    """The number to return for a sample: a series of its step rewards, reduced to one.

    The default is the outcome reward, the last cumulative one, in units of beta times nats. Series.MEAN is in
    these units per token; Series.STEP with Reducer.MIN is the lowest step reward.
    """

    series: Series = Series.CUMULATIVE
    reducer: Reducer = Reducer.LAST

    def of(self, result: Result | TokenResult) -> float:
        """Return the value of a result."""
        first = result.first_summed if isinstance(result, Result) else 0
        counts = np.asarray(result.step_ends) - first + 1
        return aggregate(
            read_series(self.series, result.cumulative_rewards, result.step_rewards, counts), self.reducer
        )


OUTCOME = Value()


async def score(scorer: AsyncScorer, rollouts: Sequence[Rollout]) -> list[Answer]:
    """Score samples together; return one answer for each, in their order, errors among them.

    Raises ScorerClosed and Overloaded; and RunFailed, since then no sample is to blame.
    """
    return _checked(await scorer.outcomes(_requests(rollouts)))


def score_now(scorer: AsyncScorer, rollouts: Sequence[Rollout]) -> list[Answer]:
    """Score samples as `score` does, from a thread, which waits; other threads' samples are scored with them.

    Not for a task of an event loop, which it would block.
    """
    return _checked(scorer.scheduler.submit(_requests(rollouts)).done.result())


def scalars(answers: Sequence[Answer], value: Value) -> list[float | None]:
    """Return the value of each answer, None for an error; errors are counted in one line of the log."""
    errors = [answer for answer in answers if isinstance(answer, StepscoreError)]
    if errors:
        first = errors[0]
        logger.warning(
            "%d of %d samples have no reward; the first: %s%s",
            len(errors),
            len(answers),
            first.message,
            f" ({first.hint})" if first.hint else "",
        )
    return [None if isinstance(answer, StepscoreError) else value.of(answer) for answer in answers]


def each_or(
    name: str, answers: Sequence[Answer], default: T | None, read: Callable[[Result | TokenResult], T]
) -> list[T]:
    """Return what `read` gives for each answer, and `default` for an error.

    Without a default the first error is raised, and names its place: `<name>[2]: ...`.
    """
    found = []
    for place, answer in enumerate(answers):
        if not isinstance(answer, StepscoreError):
            found.append(read(answer))
        elif default is not None:
            found.append(default)
        else:
            raise type(answer)(f"{name}[{place}]: {answer.message}", hint=answer.hint)
    return found


def _requests(rollouts: Sequence[Rollout]) -> list[Request | InputError]:
    return [each if isinstance(each, InputError) else Request(each) for each in rollouts]


def _checked(answers: Sequence[Answer]) -> list[Answer]:
    for answer in answers:
        if isinstance(answer, StepscoreError) and not isinstance(answer, InputError | NonFinite):
            raise answer
    return list(answers)
