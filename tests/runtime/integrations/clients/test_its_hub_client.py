"""its_hub itself searches with the adapters; skipped where it is not installed."""

from __future__ import annotations

import asyncio
import itertools
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stepscore.integrations.its_hub import OutcomeRewardModel, ProcessRewardModel
from stepscore.scheduling.async_scorer import AsyncScorer

pytestmark = pytest.mark.filterwarnings("ignore")
PROBLEM = "1 + 1?"
ANSWERS = ["So \\boxed{2}.", "So \\boxed{3}."]


@pytest.fixture
def its_hub() -> Any:
    return pytest.importorskip("its_hub", reason="its-hub is not installed (1.2.0 was driven)")


def language_model(its_hub: Any) -> Any:
    """Writes two steps and an answer, another text each time; whole answers if it may not stop."""

    class Counting(its_hub.AbstractLanguageModel):  # type: ignore[misc]
        def __init__(self) -> None:
            self.count = itertools.count()

        async def agenerate(self, messages: Any, stop: str | None = None, **options: Any) -> Any:
            if messages and isinstance(messages[0], list):
                return [await self.agenerate_single(each, stop) for each in messages]
            return await self.agenerate_single(messages, stop)

        async def agenerate_single(self, messages: Any, stop: str | None = None, **options: Any) -> Any:
            number = next(self.count)
            written = messages[-1].content.split("\n\n") if messages[-1].role == "assistant" else []
            done = stop is None or len(written) > 2
            return {"role": "assistant", "content": ANSWERS[number % 2] if done else f"Step {number}."}

    return Counting()


def reward(direct: Any, text: str, *, finished: bool) -> float:
    return float(direct.text(PROBLEM, *text.split("\n\n"), unfinished=not finished).outcome_reward)


def step_generation(max_steps: int = 6) -> Any:
    from its_hub.core.lms.step_generation import StepGeneration

    return StepGeneration(max_steps=max_steps, step_token="\n\n", stop_token="\\boxed")


def test_beam_search_ranks_by_the_reward(its_hub: Any, shared: AsyncScorer, direct: Any) -> None:
    from its_hub.core.algorithms.beam_search import BeamSearch

    prm = ProcessRewardModel(shared, stop_token="\\boxed")
    found = BeamSearch(step_generation(), prm, 2).infer(
        language_model(its_hub), PROBLEM, budget=4, return_response_only=False
    )
    texts = [each["content"] for each in found.responses]
    assert all("\\boxed" in text for text in texts)
    expected = [1 / (1 + math.exp(-reward(direct, text, finished=True))) for text in texts]
    assert np.allclose(found.scores, expected, rtol=0, atol=1e-5)
    assert found.selected_index == int(np.argmax(expected))


def test_the_search_of_the_page_runs(its_hub: Any, shared: AsyncScorer) -> None:
    page = (Path(__file__).parents[4] / "docs" / "search.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^```python\n(from its_hub.*?)^```\n", page, re.MULTILINE | re.DOTALL)
    prm = ProcessRewardModel(shared, stop_token="\\boxed")
    names: dict[str, Any] = {"prm": prm, "lm": language_model(its_hub)}
    exec(code, names)
    assert "\\boxed" in names["answer"]["content"]


def test_the_log_weights_of_particles_are_rewards(its_hub: Any, shared: AsyncScorer, direct: Any) -> None:
    from its_hub.core.algorithms.particle_gibbs import ParticleFiltering

    prm = ProcessRewardModel(shared, stop_token="\\boxed")
    found = ParticleFiltering(step_generation(), prm).infer(
        language_model(its_hub), PROBLEM, budget=3, return_response_only=False
    )
    expected = [reward(direct, each["content"], finished=True) for each in found.responses]
    assert np.allclose(found.log_weights_lst, expected, rtol=0, atol=1e-4)


def test_searches_at_the_same_time_share_one_scorer(its_hub: Any, shared: AsyncScorer) -> None:
    from its_hub.core.algorithms.beam_search import BeamSearch

    search = BeamSearch(step_generation(), ProcessRewardModel(shared, stop_token="\\boxed"), 1)

    async def both() -> list[Any]:
        return await asyncio.gather(*(search.ainfer(language_model(its_hub), PROBLEM, 1) for _ in range(4)))

    assert all("\\boxed" in each["content"] for each in asyncio.run(both()))


def test_best_of_n_selects_the_highest_outcome(its_hub: Any, shared: AsyncScorer, direct: Any) -> None:
    from its_hub.core.algorithms.bon import BestOfN

    found = BestOfN(OutcomeRewardModel(shared)).infer(
        language_model(its_hub), PROBLEM, budget=4, return_response_only=False
    )
    expected = [reward(direct, each["content"], finished=True) for each in found.responses]
    assert np.allclose(found.scores, expected, rtol=0, atol=1e-5)
    assert found.selected_index == int(np.argmax(np.round(expected, 5)))
