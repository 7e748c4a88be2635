"""The call of TRL's trainers, as its sources and a recorded GRPO step have it."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest

from stepscore.enums import Reducer, Series
from stepscore.errors import InvalidRecord
from stepscore.integrations.answers import Value
from stepscore.integrations.trl import AsyncRewardFunction, RewardFunction
from stepscore.scheduling.async_scorer import AsyncScorer

PROBLEMS = ["1 + 1?", "2 + 2?"]
SOLUTIONS = ["1 + 1 = 2.\n\nSo 2.", "5"]


@pytest.fixture(scope="module")
def ids(direct: Any) -> list[list[int]]:
    return [direct.tokens(text + "<|im_end|>") for text in SOLUTIONS]


@pytest.fixture(scope="module")
def by_ids(direct: Any, ids: list[list[int]]) -> list[Any]:
    prompts = [direct.tokens(direct.prompt(problem)) for problem in PROBLEMS]
    return [direct.ids(*each) for each in zip(prompts, ids, strict=True)]


def close(found: list[float | None], expected: list[float]) -> bool:
    return bool(np.allclose(np.array(found, dtype=float), expected, rtol=0, atol=1e-5))


def test_completion_ids_are_scored_as_they_were_sampled(
    shared: AsyncScorer, by_ids: list[Any], ids: list[list[int]]
) -> None:
    found = RewardFunction(shared)(
        prompts=PROBLEMS, completions=SOLUTIONS, completion_ids=ids, trainer_state=None, label=[1, 0]
    )
    assert close(found, [each.outcome_reward for each in by_ids])


def test_conversations_have_the_rewards_of_their_texts(
    shared: AsyncScorer, by_ids: list[Any], ids: list[list[int]]
) -> None:
    prompts = [[{"role": "user", "content": problem}] for problem in PROBLEMS]
    completions = [[{"role": "assistant", "content": text}] for text in SOLUTIONS]
    found = RewardFunction(shared)(prompts=prompts, completions=completions, completion_ids=ids)
    assert close(found, [each.outcome_reward for each in by_ids])


def test_texts_are_finished_solutions(shared: AsyncScorer, direct: Any, ids: list[list[int]]) -> None:
    split = [text.split("\n\n") for text in SOLUTIONS]
    expected = [
        direct.text(*each).outcome_reward for each in ((PROBLEMS[0], *split[0]), (PROBLEMS[1], *split[1]))
    ]
    assert close(RewardFunction(shared)(PROBLEMS, SOLUTIONS), expected)
    truncated = [each[:-1] for each in ids]  # without the end of turn, which a text always has
    assert close(RewardFunction(shared, use_ids=False)(PROBLEMS, SOLUTIONS, truncated), expected)
    assert not close(RewardFunction(shared)(PROBLEMS, SOLUTIONS, truncated), expected)


def test_another_value_may_be_the_reward(
    shared: AsyncScorer, by_ids: list[Any], ids: list[list[int]]
) -> None:
    lowest = RewardFunction(shared, Value(Series.STEP, Reducer.MIN))
    assert close(lowest(PROBLEMS, SOLUTIONS, ids), [min(each.step_rewards) for each in by_ids])


def test_a_completion_that_cannot_be_scored_has_no_reward(shared: AsyncScorer, ids: list[list[int]]) -> None:
    found = RewardFunction(shared)(PROBLEMS, [SOLUTIONS[0], "another text"], ids)
    assert found[0] is not None
    assert found[1] is None


def test_step_rewards_and_the_share_without_reward_are_logged(
    shared: AsyncScorer, ids: list[list[int]]
) -> None:
    columns: dict[str, list[Any]] = {}
    metrics: dict[str, float] = {}
    RewardFunction(shared)(
        PROBLEMS,
        [SOLUTIONS[0], "another text"],
        ids,
        log_extra=columns.__setitem__,
        log_metric=metrics.__setitem__,
    )
    ((steps, none),) = columns.values()
    assert len(steps) == 2
    assert none is None
    assert metrics == {"stepscore/unscored": 0.5}


def test_the_asynchronous_function_gives_the_same(
    shared: AsyncScorer, by_ids: list[Any], ids: list[list[int]]
) -> None:
    found = asyncio.run(AsyncRewardFunction(shared)(PROBLEMS, SOLUTIONS, ids))
    assert close(found, [each.outcome_reward for each in by_ids])


def test_trl_logs_it_under_its_name(shared: AsyncScorer) -> None:
    assert RewardFunction(shared, name="pair").__name__ == "pair"


def test_lists_of_other_lengths_are_refused(shared: AsyncScorer) -> None:
    with pytest.raises(InvalidRecord, match="2 prompts, but 1 completions"):
        RewardFunction(shared)(PROBLEMS, ["2"])
    with pytest.raises(InvalidRecord, match="2 completions, but 1 completion_ids"):
        RewardFunction(shared)(PROBLEMS, SOLUTIONS, [[1]])
