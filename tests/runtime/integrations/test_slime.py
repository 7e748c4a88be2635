"""The call of slime's rollouts, as its sources have it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from stepscore.integrations.slime import reward_function
from stepscore.scheduling.async_scorer import AsyncScorer

PROBLEM, SOLUTION, END = "1 + 1?", "1 + 1 = 2.\n\nSo 2.", "<|im_end|>"
ARGS = SimpleNamespace(reward_key=None)


@dataclass
class Sample:
    """Slime's, as far as it is read."""

    prompt: Any = PROBLEM
    tokens: list[int] = field(default_factory=list)
    response: str = SOLUTION
    response_length: int = 0
    label: str | None = None
    loss_mask: list[int] | None = None
    remove_sample: bool = False


@pytest.fixture
def sample(direct: Any) -> Sample:
    response = direct.tokens(SOLUTION + END)
    return Sample(tokens=[*direct.tokens(direct.prompt(PROBLEM)), *response], response_length=len(response))


@pytest.fixture
def expected(direct: Any, sample: Sample) -> Any:
    cut = -sample.response_length
    return direct.ids(sample.tokens[:cut], sample.tokens[cut:])


def test_a_sample_s_ids_are_scored_as_they_were_sampled(
    shared: AsyncScorer, sample: Sample, expected: Any
) -> None:
    found = asyncio.run(reward_function(shared)(ARGS, sample, evaluation=True))
    assert found == pytest.approx(expected.outcome_reward, abs=1e-5)
    assert not sample.remove_sample


def test_a_sample_without_ids_is_scored_as_text(shared: AsyncScorer, direct: Any) -> None:
    prompt = [{"role": "user", "content": PROBLEM}]
    found = asyncio.run(reward_function(shared)(ARGS, Sample(prompt=prompt)))
    assert found == pytest.approx(direct.text(PROBLEM, *SOLUTION.split("\n\n")).outcome_reward, abs=1e-5)


def test_a_list_gives_a_list(shared: AsyncScorer, sample: Sample, expected: Any) -> None:
    found = asyncio.run(reward_function(shared)(ARGS, [sample, Sample(response="")]))
    assert found == [pytest.approx(expected.outcome_reward, abs=1e-5), 0.0]


def test_a_reward_key_holds_the_reward_beside_those_of_steps_and_tokens(
    shared: AsyncScorer, sample: Sample, expected: Any
) -> None:
    found = asyncio.run(reward_function(shared)(SimpleNamespace(reward_key="score"), sample))
    assert found["score"] == pytest.approx(expected.outcome_reward, abs=1e-5)
    assert found["step_rewards"] == pytest.approx(expected.step_rewards, abs=1e-5)
    assert len(found["token_rewards"]) == sample.response_length


def test_a_sample_that_cannot_be_scored_is_removed(shared: AsyncScorer, sample: Sample) -> None:
    sample.loss_mask = [1] * (sample.response_length - 1) + [0]
    assert asyncio.run(reward_function(shared, error_reward=-1.0)(ARGS, sample)) == -1.0
    assert sample.remove_sample
