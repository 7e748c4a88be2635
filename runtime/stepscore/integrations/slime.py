"""Custom reward function for slime, in a module that its option --custom-rm-path names.

    # rewards.py, for --custom-rm-path rewards.pair_rm
    from stepscore.integrations.slime import reward_function

    pair_rm = reward_function("/models/pair")

slime is no package of an index; its call was read in its sources of November 2026.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

from stepscore.errors import InvalidRecord, StepscoreError
from stepscore.integrations.answers import OUTCOME, Value, scalars, score
from stepscore.integrations.rollouts import Rollout, RolloutReader
from stepscore.results import TokenResult
from stepscore.scheduling.async_scorer import AsyncScorer
from stepscore.scheduling.requests import Answer

Reward = float | dict[str, Any]


def reward_function(
    pair: str | Path | AsyncScorer,
    value: Value = OUTCOME,
    *,
    error_reward: float = 0.0,
    drop_system: bool = False,
    **options: Any,
) -> Callable[..., Awaitable[Reward | list[Reward]]]:
    """Return the function `await rm(args, sample)`; `options` are those of `Scorer.load`.

    A sample has the token ids of prompt and response, which are scored as they are: they must be of the
    pair's tokenizer. A sample without ids has its prompt (a text or messages) and response scored as texts;
    `drop_system` leaves out a system message. The reward is `value`, by default the outcome reward, in units
    of beta times nats. With slime's --reward-key it stands under that key, beside `step_rewards` and, for
    ids, `token_rewards`. A list of samples (--group-rm) gives a list.

    A sample that cannot be scored gets `error_reward`, and its `remove_sample` is set: slime trains on none
    of its tokens, but its reward still counts in the mean of its group.
    """
    scorer = pair if isinstance(pair, AsyncScorer) else AsyncScorer.load(pair, **options)
    reader = RolloutReader(scorer.scorer.pair, drop_system=drop_system)

    async def rm(args: Any, sample: Any, **others: Any) -> Reward | list[Reward]:
        samples: Sequence[Any] = sample if isinstance(sample, list) else [sample]
        answers = await score(scorer, [_rollout(reader, each) for each in samples])
        rewards: list[Reward] = []
        for each, answer, found in zip(samples, answers, scalars(answers, value), strict=True):
            each.remove_sample = each.remove_sample or found is None
            number = error_reward if found is None else found
            key = getattr(args, "reward_key", None)
            rewards.append({key: number} | _details(answer) if key else number)
        return rewards if isinstance(sample, list) else rewards[0]

    return rm


def _rollout(reader: RolloutReader, sample: Any) -> Rollout:
    count = sample.response_length
    if not sample.tokens or not count:
        return reader.of_text(sample.prompt, sample.response)
    if sample.loss_mask is not None and not all(sample.loss_mask):
        return InvalidRecord(
            "loss_mask is 0 for a token of the response: it holds tokens that the model did not sample"
        )
    return reader.of_ids(sample.tokens[:-count], sample.tokens[-count:], sample.response)


def _details(answer: Answer) -> dict[str, Any]:
    if isinstance(answer, StepscoreError):
        return {"step_rewards": None, "token_rewards": None}
    tokens = answer.token_rewards.tolist() if isinstance(answer, TokenResult) else None
    return {"step_rewards": answer.step_rewards, "token_rewards": tokens}
