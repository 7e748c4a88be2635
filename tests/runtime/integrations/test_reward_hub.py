"""The calls of reward_hub's models, as its sources have them."""

from __future__ import annotations

import enum
import math
import sys
from types import ModuleType
from typing import Any

import pytest

from stepscore.errors import InvalidRecord, NoSteps
from stepscore.integrations.reward_hub import OutcomeRewardModel, ProcessRewardModel
from stepscore.scheduling.async_scorer import AsyncScorer

PROBLEM, SOLUTION = "1 + 1?", "1 + 1 = 2.\n\nSo 2.\n\nDone."
TURNS = [{"role": "user", "content": PROBLEM}, {"role": "assistant", "content": SOLUTION}]
EMPTY = [TURNS[0], {"role": "assistant", "content": ""}]


class AggregationMethod(enum.Enum):
    MIN = "min"


class PRMResult:
    """What reward_hub's takes."""

    def __init__(self, scores: list[float], aggregation_method: str) -> None:
        self.step_scores, self.method = scores, aggregation_method


@pytest.fixture(scope="module")
def expected(direct: Any) -> list[float]:
    rewards = direct.text(PROBLEM, *SOLUTION.split("\n\n")).cumulative_rewards
    return [1 / (1 + math.exp(-reward)) for reward in rewards]


@pytest.mark.parametrize(
    ("method", "reduce"),
    [("last", lambda x: x[-1]), (AggregationMethod.MIN, min), ("model", lambda x: x[-1])],
)
def test_a_conversation_has_the_reduced_score_of_its_steps(
    shared: AsyncScorer, expected: list[float], method: Any, reduce: Any
) -> None:
    found = ProcessRewardModel(shared).score([TURNS, TURNS], aggregation_method=method, max_input_tokens=9)
    assert found == pytest.approx([reduce(expected)] * 2, abs=1e-6)


def test_one_conversation_gives_a_list_of_one(shared: AsyncScorer, expected: list[float]) -> None:
    assert ProcessRewardModel(shared).score(TURNS) == pytest.approx([expected[-1]], abs=1e-6)


def test_a_full_result_holds_the_scores_of_the_steps(
    shared: AsyncScorer, expected: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    base = ModuleType("reward_hub.base")
    base.PRMResult = PRMResult  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "reward_hub", ModuleType("reward_hub"))
    monkeypatch.setitem(sys.modules, "reward_hub.base", base)
    prm = ProcessRewardModel(shared)
    (steps,) = prm.score([TURNS], return_full_prm_result=True, aggregation_method="min")
    (whole,) = prm.score([TURNS], return_full_prm_result=True, aggregation_method="model")
    assert (steps.step_scores, steps.method) == (pytest.approx(expected, abs=1e-6), "min")
    assert (whole.step_scores, whole.method) == (pytest.approx(expected[-1:], abs=1e-6), "model")


def test_a_product_and_another_separator_are_refused(shared: AsyncScorer) -> None:
    with pytest.raises(InvalidRecord, match="it must be last, min or model"):
        ProcessRewardModel(shared).score([TURNS], aggregation_method="prod")
    with pytest.raises(InvalidRecord, match="separated by a blank line"):
        ProcessRewardModel(shared).score([TURNS], step_sep="\n")


def test_a_conversation_that_cannot_be_scored_is_the_default_or_an_error(shared: AsyncScorer) -> None:
    assert ProcessRewardModel(shared, default=0.0).score([EMPTY]) == [0.0]
    with pytest.raises(NoSteps, match=r"^messages\[0\]: "):
        ProcessRewardModel(shared).score([EMPTY])


def test_an_outcome_is_signed(shared: AsyncScorer, direct: Any) -> None:
    reward = direct.text(PROBLEM, *SOLUTION.split("\n\n")).outcome_reward
    assert OutcomeRewardModel(shared).score([TURNS], num_workers=3) == pytest.approx([reward], abs=1e-5)
