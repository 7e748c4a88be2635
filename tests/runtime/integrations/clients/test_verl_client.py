"""verl's reward loop finds, calls and reads both entry points; skipped where it is not installed."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from testing.pairs import Checkpoints

from stepscore.integrations import verl as adapter

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.slow, pytest.mark.torch]
PROBLEMS = ["1 + 1?", "A longer problem, 2 + 2?"]
SOLUTIONS = ["1 + 1 = 2.\n\nSo 2.", "5"]


@pytest.fixture
def verl(tiny_pair: Path) -> Iterator[Any]:
    yield pytest.importorskip("verl", reason="verl is not installed (0.9.1 was driven)")
    adapter._opened.cache_clear()


@pytest.fixture
def data(verl: Any, direct: Any) -> Any:
    """Two samples as verl's colocated path has them: prompts padded on the left, responses on the right."""
    import torch

    prompts = [direct.tokens(direct.prompt(problem)) for problem in PROBLEMS]
    responses = [direct.tokens(text + "<|im_end|>") for text in SOLUTIONS]
    width, length = max(map(len, prompts)), max(map(len, responses))
    left = [[0] * (width - len(ids)) for ids in prompts]
    right = [[0] * (length - len(ids)) for ids in responses]
    masks = [
        [0] * len(a) + [1] * len(p + r) + [0] * len(b)
        for a, p, r, b in zip(left, prompts, responses, right, strict=True)
    ]
    questions = np.array([{"question": problem} for problem in PROBLEMS], dtype=object)
    return verl.DataProto.from_dict(
        tensors={
            "prompts": torch.tensor([a + p for a, p in zip(left, prompts, strict=True)]),
            "responses": torch.tensor([r + b for r, b in zip(responses, right, strict=True)]),
            "attention_mask": torch.tensor(masks),
        },
        non_tensors={
            "data_source": np.array(["math", "math"], dtype=object),
            "reward_model": np.array([{"ground_truth": "2"}, {"ground_truth": "4"}], dtype=object),
            "extra_info": questions,
        },
    )


def scored(verl: Any, data: Any, policy: Path, **reward: Any) -> list[dict[str, Any]]:
    """What a worker of verl's reward loop answers."""
    from omegaconf import OmegaConf
    from verl.experimental.reward_loop.reward_loop import RewardLoopWorker

    model = {"path": str(policy), "tokenizer_path": None}
    defaults = {
        "num_workers": 1,
        "reward_model": {"enable": False, "enable_resource_pool": False, "model_path": str(policy)},
        "custom_reward_function": {"path": None, "name": "compute_score"},
        "reward_manager": {"source": "register", "name": "naive"},
    }
    config = OmegaConf.create(
        {"actor_rollout_ref": {"model": model}, "reward": OmegaConf.merge(defaults, reward)}
    )
    outcomes: list[dict[str, Any]] = []

    async def run() -> None:
        worker = RewardLoopWorker(config)
        outcomes.extend(await worker.compute_score_batch(data))

    asyncio.run(run())
    return outcomes


def options(pair: Path) -> dict[str, Any]:
    return {"pair": str(pair), "convention": "exact", "beta": 1.0}


MODULE = "pkg://stepscore.integrations.verl"
MANAGER = {"source": "importlib", "name": "RewardManager", "module": {"path": MODULE}}


def test_compute_score_is_the_custom_reward_function(
    verl: Any, data: Any, direct: Any, tiny_checkpoints: Checkpoints, tiny_pair: Path
) -> None:
    function = {"path": MODULE, "name": "compute_score", "reward_kwargs": options(tiny_pair)}
    found = scored(verl, data, tiny_checkpoints.policy, custom_reward_function=function)
    expected = [
        direct.text(problem, *text.split("\n\n")).outcome_reward
        for problem, text in zip(PROBLEMS, SOLUTIONS, strict=True)
    ]
    assert [each["reward_score"] for each in found] == pytest.approx(expected, abs=1e-5)
    assert [each["reward_extra_info"]["scored"] for each in found] == [1.0, 1.0]


def test_the_configurations_of_the_page_are_verl_s(
    *, verl: Any, data: Any, tiny_checkpoints: Checkpoints, tiny_pair: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    from omegaconf import OmegaConf

    monkeypatch.chdir(tmp_path)
    Path("pair").symlink_to(tiny_pair)
    page = (Path(__file__).parents[4] / "docs" / "rl.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```text\n(.*?)^```\n", page, re.MULTILINE | re.DOTALL)
    by_function, by_manager, colocated = (
        OmegaConf.from_dotlist([line.removeprefix("+") for line in block.splitlines()]).reward
        for block in blocks
    )
    tokens = {"reward_kwargs": {"tokens": True}}
    for given in (by_function, by_manager, OmegaConf.merge(by_manager, colocated, tokens)):
        found = scored(verl, data, tiny_checkpoints.policy, **given)
        assert [each["reward_extra_info"]["scored"] for each in found] == [1.0, 1.0]


def test_the_reward_manager_scores_token_ids(
    verl: Any, data: Any, direct: Any, tiny_checkpoints: Checkpoints, tiny_pair: Path
) -> None:
    found = scored(
        verl, data, tiny_checkpoints.policy, reward_manager=MANAGER, reward_kwargs=options(tiny_pair)
    )
    scores = [each["reward_score"] for each in found]
    results = [
        direct.ids(direct.tokens(direct.prompt(problem)), direct.tokens(text + "<|im_end|>"))
        for problem, text in zip(PROBLEMS, SOLUTIONS, strict=True)
    ]
    assert scores == pytest.approx([each.outcome_reward for each in results], abs=1e-5)
    rewards = adapter.RewardManager.assemble_rm_scores(data, scores)
    from verl.experimental.reward_loop.reward_manager.base import RewardManagerBase

    assert rewards.equal(RewardManagerBase.assemble_rm_scores(data, scores))


def test_rewards_of_tokens_reach_the_tensor_on_the_colocated_path(
    verl: Any, data: Any, direct: Any, tiny_checkpoints: Checkpoints, tiny_pair: Path
) -> None:
    found = scored(
        verl,
        data,
        tiny_checkpoints.policy,
        reward_manager=MANAGER,
        reward_kwargs=options(tiny_pair) | {"tokens": True},
        reward_model={"enable": True},
        custom_reward_function={"path": MODULE, "name": "compute_score"},
    )
    rewards = adapter.RewardManager.assemble_rm_scores(data, [each["reward_score"] for each in found])
    for row, problem, text in zip(rewards.tolist(), PROBLEMS, SOLUTIONS, strict=True):
        response = direct.tokens(text + "<|im_end|>")
        expected = direct.ids(direct.tokens(direct.prompt(problem)), response).token_rewards.tolist()
        assert row[: len(response)] == pytest.approx(expected, abs=1e-5)
        assert set(row[len(response) :]) <= {0.0}
