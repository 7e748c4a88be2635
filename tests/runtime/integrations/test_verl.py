"""The calls of verl's reward loop, as its sources have them."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from stepscore.errors import InvalidRecord
from stepscore.integrations import verl
from stepscore.integrations.verl import RewardManager, compute_score

PROBLEM, SOLUTION, END = "1 + 1?", "1 + 1 = 2.\n\nSo 2.", "<|im_end|>"
STREAMING = {"enable": False, "enable_resource_pool": False}
COLOCATED = {"enable": True, "enable_resource_pool": False}


class Config(dict[str, Any]):
    """The part of an OmegaConf configuration that is read: items are attributes."""

    def __getattr__(self, name: str) -> Any:
        value = self[name]
        return Config(value) if isinstance(value, dict) else value


@pytest.fixture(scope="module")
def options(tiny_pair: Path) -> Iterator[dict[str, Any]]:
    yield {"pair": str(tiny_pair), "convention": "exact", "beta": 1.0}
    verl._opened.cache_clear()


def config(options: dict[str, Any], model: dict[str, bool], function: str | None = None) -> Config:
    reward = {"reward_kwargs": options, "reward_model": model, "custom_reward_function": {"path": function}}
    return Config(reward=reward)


class Tokenizer:
    """Of the trained model: it decodes to the text that was sampled."""

    def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        return SOLUTION


def data(prompt: list[int], response: list[int], padding: int, **others: Any) -> Any:
    """A batch of one sample as DataProto has it: prompts are padded on the left, responses on the right."""
    zeros = [0] * padding
    item = SimpleNamespace(
        batch={
            "prompts": np.array(zeros + prompt),
            "responses": np.array(response + zeros),
            "attention_mask": np.array(zeros + [1] * len(prompt + response) + zeros),
        },
        non_tensor_batch=others,
    )
    return [item]


@pytest.fixture(scope="module")
def sampled(direct: Any) -> tuple[list[int], list[int]]:
    return direct.tokens(direct.prompt(PROBLEM)), direct.tokens(SOLUTION + END)


# compute_score


def test_a_solution_has_the_reward_of_its_text(options: dict[str, Any], direct: Any) -> None:
    result = direct.text(PROBLEM, *SOLUTION.split("\n\n"))
    router = {"reward_router_address": None, "reward_model_tokenizer": None}
    found = asyncio.run(
        compute_score(
            "math", SOLUTION, "2", {"problem": PROBLEM}, problem_field="problem", **options, **router
        )
    )
    assert found["score"] == pytest.approx(result.outcome_reward, abs=1e-5)
    assert found["num_steps"] == 2
    assert found["scored"] == 1


def test_verl_sees_a_coroutine_function() -> None:
    assert inspect.iscoroutinefunction(compute_score)


def test_a_solution_that_cannot_be_scored_is_told_apart(options: dict[str, Any]) -> None:
    found = asyncio.run(compute_score("", " ", "", {"question": PROBLEM}, error_score=-1.0, **options))
    assert found == {"score": -1.0, "outcome_reward": 0.0, "num_steps": 0.0, "scored": 0.0}


def test_a_missing_problem_names_the_fields(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidRecord, match="no text 'question', but split, index"):
        asyncio.run(compute_score("", SOLUTION, "", {"split": "train", "index": 1}, **options))


# The reward manager


@pytest.mark.parametrize("padding", [0, 3])
def test_token_ids_are_scored_without_padding(
    options: dict[str, Any], sampled: Any, direct: Any, padding: int
) -> None:
    manager = RewardManager(config(options, STREAMING), Tokenizer())
    found = asyncio.run(manager.run_single(data(*sampled, padding)))
    assert found["reward_score"] == pytest.approx(direct.ids(*sampled).outcome_reward, abs=1e-5)
    assert found["reward_extra_info"]["scored"] == 1


def test_given_lengths_decide_what_is_padding(options: dict[str, Any], sampled: Any, direct: Any) -> None:
    """As on verl's path for several outputs, where both are padded on the right and one mask is for both."""
    prompt, response = sampled
    (item,) = data(
        prompt, response, 0, prompt_len=np.int64(len(prompt)), response_len=np.int64(len(response))
    )
    item.batch["prompts"] = np.array([*prompt, 0, 0])
    found = asyncio.run(RewardManager(config(options, STREAMING), Tokenizer()).run_single([item]))
    assert found["reward_score"] == pytest.approx(direct.ids(*sampled).outcome_reward, abs=1e-5)


def test_a_response_of_several_turns_or_other_ids_is_not_scored(
    options: dict[str, Any], sampled: Any
) -> None:
    prompt, response = sampled
    manager = RewardManager(config(options | {"error_score": -1.0}, STREAMING), Tokenizer())
    for wrong in (data(prompt, response, 0, __num_turns__=np.int32(4)), data(prompt, response[1:], 0)):
        found = asyncio.run(manager.run_single(wrong))
        assert found["reward_score"] == -1.0
        assert found["reward_extra_info"]["scored"] == 0


def test_rewards_of_tokens_are_as_many_as_the_tokens(
    options: dict[str, Any], sampled: Any, direct: Any
) -> None:
    manager = RewardManager(config(options | {"tokens": True}, COLOCATED, "reward.py"), Tokenizer())
    found = asyncio.run(manager.run_single(data(*sampled, 2)))
    assert found["reward_score"] == pytest.approx(direct.ids(*sampled).token_rewards.tolist(), abs=1e-5)
    other = asyncio.run(manager.run_single(data(sampled[0], sampled[1][1:], 2)))
    assert other["reward_score"] == [0.0] * (len(sampled[1]) - 1)


@pytest.mark.parametrize(
    ("model", "function"),
    [
        (STREAMING, "reward.py"),
        ({"enable": True, "enable_resource_pool": True}, "reward.py"),
        (COLOCATED, None),
    ],
)
def test_rewards_of_tokens_are_refused_where_verl_would_reduce_them(
    options: dict[str, Any], model: dict[str, bool], function: str | None
) -> None:
    with pytest.raises(ValueError, match="one number per sample"):
        RewardManager(config(options | {"tokens": True}, model, function), Tokenizer())


def test_a_missing_pair_is_named() -> None:
    with pytest.raises(ValueError, match="pair is missing"):
        RewardManager(config({}, STREAMING), Tokenizer())


@pytest.mark.torch
def test_rewards_are_put_at_their_tokens() -> None:
    torch = pytest.importorskip("torch")
    batch = {
        "prompts": torch.tensor([[0, 5], [6, 7], [0, 8]]),
        "responses": torch.tensor([[1, 2, 0], [3, 4, 5], [1, 0, 0]]),
        "attention_mask": torch.tensor([[0, 1, 1, 1, 0], [1, 1, 1, 1, 1], [0, 1, 1, 0, 0]]),
    }
    rewards = RewardManager.assemble_rm_scores(SimpleNamespace(batch=batch), [0.5, [1.0, 2.0, 3.0], [-1.0]])
    assert rewards.dtype == torch.float32
    assert rewards.tolist() == [[0.0, 0.5, 0.0], [1.0, 2.0, 3.0], [-1.0, 0.0, 0.0]]
    with pytest.raises(ValueError, match="2 rewards for a response of 3 tokens"):
        RewardManager.assemble_rm_scores(SimpleNamespace(batch=batch), [0.5, [1.0, 2.0], [-1.0]])
