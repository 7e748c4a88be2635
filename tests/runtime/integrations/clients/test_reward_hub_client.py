"""reward_hub's own result class takes the scores; skipped where it is not installed."""

from __future__ import annotations

from typing import Any

import pytest

from stepscore.integrations.reward_hub import ProcessRewardModel
from stepscore.scheduling.async_scorer import AsyncScorer

pytestmark = pytest.mark.filterwarnings("ignore")
TURNS = [
    {"role": "user", "content": "1 + 1?"},
    {"role": "assistant", "content": "1 + 1 = 2.\n\nSo 2.\n\nDone."},
]


@pytest.fixture
def base() -> Any:
    pytest.importorskip("reward_hub", reason="reward-hub is not installed (0.1.10 was driven)")
    return pytest.importorskip("reward_hub.base")


@pytest.mark.parametrize("method", ["LAST", "MIN", "MODEL"])
def test_a_full_result_has_the_score_of_the_call_without_one(
    base: Any, shared: AsyncScorer, method: str
) -> None:
    kind = base.AggregationMethod[method]
    prm = ProcessRewardModel(shared)
    (full,) = prm.score([TURNS], aggregation_method=kind, return_full_prm_result=True)
    assert isinstance(full, base.PRMResult)
    assert [full.score] == pytest.approx(prm.score([TURNS], aggregation_method=kind), abs=1e-6)
