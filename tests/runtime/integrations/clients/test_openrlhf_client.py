"""OpenRLHF's executor loads the file and calls it; skipped where it is not installed."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytestmark = pytest.mark.filterwarnings("ignore")
SOLUTION, END = "1 + 1 = 2.\n\nSo 2.", "<|im_end|>"
FILE = """
from stepscore.integrations.openrlhf import reward_function

reward_func = reward_function({!r}, convention="exact", beta=1.0)
"""


class Tokenizer:
    """A Hugging Face tokenizer, as far as the executor calls it."""

    def __init__(self, direct: Any) -> None:
        self._direct = direct

    def __call__(self, text: str, **options: Any) -> dict[str, Any]:
        import torch

        return {"input_ids": torch.tensor([self._direct.tokens(text)])}

    def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        return str(self._direct.decode(ids))


@pytest.mark.torch
def test_the_executor_gets_the_reward_of_what_was_sampled(
    tmp_path: Path, tiny_pair: Path, direct: Any
) -> None:
    agent = pytest.importorskip(
        "openrlhf.utils.agent", reason="openrlhf is not installed (0.11.2 was driven)"
    )
    (tmp_path / "reward_func.py").write_text(FILE.format(str(tiny_pair)))
    sampled = direct.tokens(SOLUTION + END)

    class Engine:
        async def generate(self, *_: Any, **__: Any) -> Any:
            output = SimpleNamespace(token_ids=sampled, finish_reason="stop", logprobs=None)
            return SimpleNamespace(outputs=[output])

    prompt = direct.prompt("1 + 1?")
    executor = agent.SingleTurnAgentExecutor(str(tmp_path / "reward_func.py"))
    found = asyncio.run(
        executor.execute(
            prompt, "2", SimpleNamespace(max_tokens=64, logprobs=None), 4096, Tokenizer(direct), Engine()
        )
    )
    expected = direct.ids(direct.tokens(prompt), sampled).outcome_reward
    assert found["reward"] == pytest.approx(expected, abs=1e-5)
    assert found["extra_logs"] == {"num_steps": 2.0, "scored": 1.0}
