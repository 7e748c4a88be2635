"""The calls of its_hub's searches and of its best-of-n, as its sources have them."""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from stepscore.errors import InvalidRecord, NoSteps
from stepscore.integrations.its_hub import OutcomeRewardModel, ProcessRewardModel
from stepscore.scheduling.async_scorer import AsyncScorer

PROBLEM = "1 + 1?"
PARTIAL, FINISHED = "1 + 1 = 2.", "1 + 1 = 2.\n\nSo \\boxed{2}."


@dataclass
class ChatMessage:
    """Its_hub's, as far as it is read."""

    role: str
    content: str

    def to_dict(self) -> dict[str, str]:
        return {"role": self.role, "content": self.content}


class ChatMessages:
    def to_chat_messages(self) -> list[ChatMessage]:
        return [ChatMessage("user", PROBLEM)]


def logits(values: list[float]) -> list[float]:
    return [math.log(value / (1 - value)) for value in values]


def test_the_inverse_sigmoid_of_a_value_is_the_reward(shared: AsyncScorer, direct: Any) -> None:
    prm = ProcessRewardModel(shared, stop_token="\\boxed")
    values = asyncio.run(prm.ascore(PROBLEM, [PARTIAL, FINISHED]))
    expected = [direct.text(PROBLEM, PARTIAL, unfinished=True), direct.text(PROBLEM, *FINISHED.split("\n\n"))]
    assert np.allclose(logits(values), [each.outcome_reward for each in expected], rtol=0, atol=1e-5)


def test_a_response_without_the_stop_token_is_partial(shared: AsyncScorer, direct: Any) -> None:
    expected = direct.text(PROBLEM, *FINISHED.split("\n\n"), unfinished=True).outcome_reward
    (value,) = ProcessRewardModel(shared).score(PROBLEM, [FINISHED])
    assert logits([value]) == pytest.approx([expected], abs=1e-5)


def test_the_temperature_divides_the_reward(shared: AsyncScorer) -> None:
    one, four = (ProcessRewardModel(shared, temperature=each).score(PROBLEM, [FINISHED]) for each in (1, 4))
    assert logits(one)[0] == pytest.approx(4 * logits(four)[0], abs=1e-5)


def test_one_response_has_one_value_and_no_response_none(shared: AsyncScorer) -> None:
    prm = ProcessRewardModel(shared)
    assert isinstance(prm.score(PROBLEM, FINISHED), float)
    assert asyncio.run(prm.ascore(PROBLEM, [])) == []


@pytest.mark.parametrize("prompt", [ChatMessages(), [ChatMessage("user", PROBLEM)]])
def test_a_prompt_may_be_messages(shared: AsyncScorer, prompt: Any) -> None:
    prm = ProcessRewardModel(shared)
    assert prm.score(prompt, [FINISHED]) == pytest.approx(prm.score(PROBLEM, [FINISHED]), abs=1e-6)


def test_a_response_that_cannot_be_scored_is_the_default_or_an_error(shared: AsyncScorer) -> None:
    values = ProcessRewardModel(shared, default=0.0).score(PROBLEM, [" ", FINISHED])
    assert values[0] == 0.0 < values[1]
    with pytest.raises(NoSteps, match=r"^responses\[0\]: "):
        ProcessRewardModel(shared).score(PROBLEM, [" ", FINISHED])


def test_an_outcome_is_the_outcome_reward_of_a_conversation(shared: AsyncScorer, direct: Any) -> None:
    orm = OutcomeRewardModel(shared)
    conversation = [ChatMessage("user", PROBLEM), ChatMessage("assistant", FINISHED)]
    expected = direct.text(PROBLEM, *FINISHED.split("\n\n")).outcome_reward
    found = asyncio.run(orm.ascore([conversation, conversation], orchestrator=object()))
    assert found == pytest.approx([expected] * 2, abs=1e-5)
    assert orm.score([each.to_dict() for each in conversation]) == pytest.approx(expected, abs=1e-5)


def test_an_outcome_that_cannot_be_scored_names_its_place(shared: AsyncScorer) -> None:
    wrong = [ChatMessage("user", PROBLEM)]
    with pytest.raises(
        InvalidRecord, match=r"^messages\[0\]: messages\[0\] must be one user and one assistant"
    ):
        asyncio.run(OutcomeRewardModel(shared).ascore([wrong]))
    assert OutcomeRewardModel(shared, default=-9.0).score([wrong]) == [-9.0]
