"""Reward functions for TRL's online trainers (GRPO, RLOO): one reward per completion.

    reward = RewardFunction.load("pair", convention="exact")
    trainer = GRPOTrainer(model, reward_funcs=reward, ...)

Checked with trl 1.16.0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

from stepscore.errors import InvalidRecord, StepscoreError
from stepscore.integrations.answers import OUTCOME, Value, scalars, score, score_now
from stepscore.integrations.conversations import as_list
from stepscore.integrations.rollouts import Rollout, RolloutReader
from stepscore.scheduling.async_scorer import AsyncScorer
from stepscore.scheduling.requests import Answer

STEP_REWARDS = "stepscore_step_rewards"
"""Column of the completions table."""
UNSCORED = "stepscore/unscored"
"""Metric: the share of completions without a reward."""


class _Rewards:
    """A pair as a reward function of TRL, but for the call.

    `value` is the reward of a completion, by default its outcome reward, in units of beta times nats. With
    `use_ids`, the completion ids that TRL sampled are scored as they are, after the prompt in the pair's chat
    template; a step ends at a blank line. They must be of the pair's tokenizer: others are that completion's
    error. Without it, the completion's text is scored as a finished solution by the scorer's convention.
    A prompt is a text, the problem, or one user message; `drop_system` leaves out a system message before it.
    """

    def __init__(
        self,
        scorer: AsyncScorer,
        value: Value = OUTCOME,
        *,
        use_ids: bool = True,
        drop_system: bool = False,
        name: str = "stepscore",
    ) -> None:
        self.scorer = scorer
        self.value = value
        self._use_ids = use_ids
        self._reader = RolloutReader(scorer.scorer.pair, drop_system=drop_system)
        self.__name__ = name  # TRL logs rewards/<name>/mean

    @classmethod
    def load(
        cls,
        pair: str | Path,
        value: Value = OUTCOME,
        *,
        use_ids: bool = True,
        drop_system: bool = False,
        name: str = "stepscore",
        **options: Any,
    ) -> Self:
        """Open the pair in a folder, with the options of `Scorer.load`."""
        scorer = AsyncScorer.load(pair, **options)
        return cls(scorer, value, use_ids=use_ids, drop_system=drop_system, name=name)

    def _rollouts(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        completion_ids: Sequence[Sequence[int]] | None,
    ) -> list[Rollout]:
        as_list("prompts", prompts)
        as_list("completions", completions)
        if len(prompts) != len(completions):
            raise InvalidRecord(f"{len(prompts)} prompts, but {len(completions)} completions")
        if completion_ids is None or not self._use_ids:
            return [self._reader.of_text(*each) for each in zip(prompts, completions, strict=True)]
        if len(completion_ids) != len(completions):
            raise InvalidRecord(f"{len(completions)} completions, but {len(completion_ids)} completion_ids")
        each = zip(prompts, completions, completion_ids, strict=True)
        return [self._reader.of_response_ids(*sample) for sample in each]

    def _rewards(
        self,
        answers: Sequence[Answer],
        log_extra: Callable[[str, list[Any]], None] | None,
        log_metric: Callable[[str, float], None] | None,
    ) -> list[float | None]:
        rewards = scalars(answers, self.value)
        if log_extra is not None:
            steps = [None if isinstance(each, StepscoreError) else each.step_rewards for each in answers]
            log_extra(STEP_REWARDS, steps)
        if log_metric is not None and answers:
            log_metric(UNSCORED, rewards.count(None) / len(rewards))
        return rewards


class RewardFunction(_Rewards):
    """A pair as a reward function of TRL: one reward per completion, None where there is none."""

    def __call__(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        completion_ids: Sequence[Sequence[int]] | None = None,
        log_extra: Callable[[str, list[Any]], None] | None = None,
        log_metric: Callable[[str, float], None] | None = None,
        **columns: Any,
    ) -> list[float | None]:
        """Return the rewards; columns of the data set are not used."""
        answers = score_now(self.scorer, self._rollouts(prompts, completions, completion_ids))
        return self._rewards(answers, log_extra, log_metric)


class AsyncRewardFunction(_Rewards):
    """The same as an asynchronous function: TRL runs all of these at the same time."""

    async def __call__(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        completion_ids: Sequence[Sequence[int]] | None = None,
        log_extra: Callable[[str, list[Any]], None] | None = None,
        log_metric: Callable[[str, float], None] | None = None,
        **columns: Any,
    ) -> list[float | None]:
        """Return the rewards; columns of the data set are not used."""
        answers = await score(self.scorer, self._rollouts(prompts, completions, completion_ids))
        return self._rewards(answers, log_extra, log_metric)
