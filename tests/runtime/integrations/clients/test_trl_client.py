"""TRL takes GRPO steps with the pair as its reward; skipped where it is not installed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from testing.pairs import Checkpoints

from stepscore.integrations.trl import AsyncRewardFunction, RewardFunction
from stepscore.scheduling.async_scorer import AsyncScorer

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.slow, pytest.mark.torch]
PROBLEMS = ["1 + 1?", "2 + 2?"]


@pytest.fixture
def trl() -> Any:
    return pytest.importorskip("trl", reason="trl is not installed (1.16.0 was driven)")


@pytest.mark.parametrize("kind", [RewardFunction, AsyncRewardFunction])
@pytest.mark.parametrize("conversational", [False, True])
def test_grpo_steps_use_the_rewards_of_the_sampled_ids(
    *,
    trl: Any,
    shared: AsyncScorer,
    direct: Any,
    tiny_checkpoints: Checkpoints,
    tmp_path: Path,
    kind: Any,
    conversational: bool,
) -> None:
    from datasets import Dataset

    calls: list[dict[str, Any]] = []

    class Noted(kind):  # type: ignore[misc]
        """Takes down what TRL sends and reads."""

        def _rollouts(self, *given: Any) -> Any:
            calls.append(dict(zip(("prompts", "completions", "completion_ids"), given, strict=True)))
            return super()._rollouts(*given)

        def _rewards(self, *given: Any) -> Any:
            calls[-1]["rewards"] = super()._rewards(*given)
            return calls[-1]["rewards"]

    prompts = [[{"role": "user", "content": each}] for each in PROBLEMS] if conversational else PROBLEMS
    trainer = trl.GRPOTrainer(
        model=str(tiny_checkpoints.policy),
        reward_funcs=Noted(shared, name="pair"),
        train_dataset=Dataset.from_dict({"prompt": prompts, "answer": ["2", "4"]}),
        args=trl.GRPOConfig(
            output_dir=str(tmp_path),
            max_steps=2,
            per_device_train_batch_size=4,
            num_generations=2,
            max_completion_length=12,
            report_to=[],
            use_cpu=True,
            logging_steps=1,
            save_strategy="no",
            bf16=False,
        ),
    )
    trainer.train()
    assert len(calls) == 2
    for call in calls:
        for prompt, ids, found in zip(call["prompts"], call["completion_ids"], call["rewards"], strict=True):
            problem = prompt[0]["content"] if conversational else prompt
            expected = direct.ids(direct.tokens(direct.prompt(problem)), ids).outcome_reward
            assert found == pytest.approx(expected, abs=1e-4)
    logged = [each["rewards/pair/mean"] for each in trainer.state.log_history if "rewards/pair/mean" in each]
    assert np.allclose(logged, [np.mean(call["rewards"]) for call in calls], atol=1e-4)
