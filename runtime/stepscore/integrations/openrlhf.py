"""Reward function for OpenRLHF, in a Python file that its option for remote reward models names.

    # reward_func.py, for --reward.remote_url reward_func.py
    from stepscore.integrations.openrlhf import reward_function

    reward_func = reward_function("/models/pair")

OpenRLHF calls it in many threads with one sample each, which are scored together. Checked with openrlhf
0.11.2.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from stepscore.errors import InvalidRecord, StepscoreError
from stepscore.integrations.answers import OUTCOME, Value, scalars, score_now
from stepscore.integrations.conversations import as_list
from stepscore.integrations.rollouts import RolloutReader
from stepscore.rewards import probability
from stepscore.scheduling.async_scorer import AsyncScorer

RewardFunction = Callable[[Sequence[str], Sequence[str], Sequence[object]], dict[str, Any]]


def reward_function(
    pair: str | Path | AsyncScorer,
    value: Value = OUTCOME,
    *,
    error_reward: float = 0.0,
    temperature: float = 1.0,
    **options: Any,
) -> RewardFunction:
    """Return the function `reward_func(queries, prompts, labels)`; `options` are those of `Scorer.load`.

    A query is decoded text, control tokens spelled out, and begins with its prompt: what follows is the
    response, whose text is tokenized apart from the prompt's. `rewards` holds the value of each, by default
    the outcome reward in units of beta times nats; `error_reward` for a query that cannot be scored, since
    OpenRLHF trains on no sample without a reward. `scores` holds sigmoid(outcome reward / temperature),
    which dynamic filtering compares with numbers in (0, 1). `extra_logs`: num_steps, and scored, 1 or 0.
    Each is a number for one query, as OpenRLHF reads it, and a list for several.
    """
    scorer = pair if isinstance(pair, AsyncScorer) else AsyncScorer.load(pair, **options)
    reader = RolloutReader(scorer.scorer.pair)

    def reward_func(
        queries: Sequence[str], prompts: Sequence[str], labels: Sequence[object]
    ) -> dict[str, Any]:
        if len(as_list("queries", queries)) != len(as_list("prompts", prompts)):
            raise InvalidRecord(f"{len(queries)} queries, but {len(prompts)} prompts")
        rollouts = [reader.of_query(*each) for each in zip(queries, prompts, strict=True)]
        answers = score_now(scorer, rollouts)
        rewards = [error_reward if found is None else found for found in scalars(answers, value)]
        results = [None if isinstance(each, StepscoreError) else each for each in answers]
        outcomes = [each.outcome_reward if each else error_reward for each in results]
        return {
            "rewards": _as_read(rewards),
            "scores": _as_read([probability(each, temperature) for each in outcomes]),
            "extra_logs": {
                "num_steps": _as_read([float(len(each.step_rewards)) if each else 0.0 for each in results]),
                "scored": _as_read([float(each is not None) for each in results]),
            },
        }

    return reward_func


def _as_read(values: list[float]) -> float | list[float]:
    return values[0] if len(values) == 1 else values
