"""The call of OpenRLHF's executor: one sample in each of many threads."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from stepscore.errors import InvalidRecord
from stepscore.integrations.openrlhf import reward_function
from stepscore.scheduling.async_scorer import AsyncScorer

PROBLEM, SOLUTION, END = "1 + 1?", "1 + 1 = 2.\n\nSo 2.", "<|im_end|>"


@pytest.fixture(scope="module")
def expected(direct: Any) -> float:
    ids = direct.ids(direct.tokens(direct.prompt(PROBLEM)), direct.tokens(SOLUTION + END))
    return float(ids.outcome_reward)


def test_one_query_has_numbers(shared: AsyncScorer, direct: Any, expected: float) -> None:
    prompt = direct.prompt(PROBLEM)
    found = reward_function(shared)([prompt + SOLUTION + END], [prompt], ["2"])
    assert found["rewards"] == pytest.approx(expected, abs=1e-5)
    assert 0 < found["scores"] < 1
    assert (found["scores"] > 0.5) == (expected > 0)
    assert found["extra_logs"] == {"num_steps": 2.0, "scored": 1.0}


def test_several_queries_have_lists(shared: AsyncScorer, direct: Any, expected: float) -> None:
    prompt = direct.prompt(PROBLEM)
    found = reward_function(shared)(
        [prompt + SOLUTION + END, PROBLEM + SOLUTION], [prompt, PROBLEM], [None] * 2
    )
    assert found["rewards"][0] == pytest.approx(expected, abs=1e-5)
    assert found["rewards"][1] != found["rewards"][0]


def test_threads_are_answered_each_with_its_own(shared: AsyncScorer, direct: Any) -> None:
    reward_func, prompt = reward_function(shared), direct.prompt(PROBLEM)
    queries = [f"{prompt}So {number}." for number in range(8)]
    one_by_one = [reward_func([query], [prompt], [""])["rewards"] for query in queries]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda query: reward_func([query], [prompt], [""])["rewards"], queries))
    assert together == pytest.approx(one_by_one, abs=1e-5)


def test_a_query_that_cannot_be_scored_has_the_reward_of_errors(shared: AsyncScorer) -> None:
    found = reward_function(shared, error_reward=-1.0)(["2"], ["cut prompt"], [""])
    assert found["rewards"] == -1.0
    assert found["extra_logs"]["scored"] == 0.0


def test_lists_of_other_lengths_are_refused(shared: AsyncScorer) -> None:
    with pytest.raises(InvalidRecord, match="2 queries, but 1 prompts"):
        reward_function(shared)(["a", "b"], ["a"], [])


def test_it_is_made_of_a_folder(tiny_pair: Path) -> None:
    assert isinstance(reward_function(tiny_pair)([PROBLEM + SOLUTION], [PROBLEM], [""])["rewards"], float)
