"""The number that a trainer reads, and values in (0, 1)."""

from __future__ import annotations

import logging
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepscore.enums import Reducer, Series
from stepscore.errors import NoSteps, RunFailed, StepscoreError
from stepscore.integrations.answers import OUTCOME, Value, each_or, scalars, score_now
from stepscore.integrations.probabilities import LARGEST_LOGIT, open_probability
from stepscore.records import Record
from stepscore.scheduling.async_scorer import AsyncScorer

STEPS = ("1 + 1 = 2.", "So 2.")


def test_the_value_is_the_outcome_reward_unless_told_otherwise(direct: Any) -> None:
    result = direct.text("1 + 1?", *STEPS)
    assert OUTCOME.of(result) == result.outcome_reward
    assert Value(Series.STEP, Reducer.MIN).of(result) == min(result.step_rewards)


def test_the_mean_is_per_token_of_the_response(direct: Any) -> None:
    text = direct.text("1 + 1?", *STEPS)
    ids = direct.ids(direct.tokens("x?"), direct.tokens("Two."))
    summed = text.step_ends[-1] - text.first_summed + 1
    assert Value(Series.MEAN).of(text) == pytest.approx(text.outcome_reward / summed)
    assert Value(Series.MEAN).of(ids) == pytest.approx(float(ids.token_rewards.mean()), rel=1e-5)


def test_errors_have_no_value_and_are_logged_once(direct: Any, caplog: pytest.LogCaptureFixture) -> None:
    result = direct.text("1 + 1?", *STEPS)
    with caplog.at_level(logging.WARNING, "stepscore.integrations"):
        assert scalars([NoSteps("empty"), result, NoSteps("too")], OUTCOME) == [
            None,
            result.outcome_reward,
            None,
        ]
    assert [each.getMessage() for each in caplog.records] == [
        "2 of 3 samples have no reward; the first: empty"
    ]


def test_an_error_is_a_default_or_is_raised_with_its_place(direct: Any) -> None:
    answers = [direct.text("1 + 1?", *STEPS), NoSteps("empty")]
    assert each_or("x", answers, -1.0, lambda result: 2.0) == [2.0, -1.0]
    with pytest.raises(NoSteps, match=r"^x\[1\]: empty$"):
        each_or("x", answers, None, lambda result: 2.0)


def test_a_failure_of_the_engine_is_no_sample_s_error(
    shared: AsyncScorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: object) -> StepscoreError:
        raise RunFailed("no memory")

    monkeypatch.setattr(shared.scorer, "planned", failing)
    with pytest.raises(RunFailed):
        score_now(shared, [Record("x?", ("2",))])


@given(st.floats(-LARGEST_LOGIT, LARGEST_LOGIT), st.sampled_from([0.01, 1.0, 40.0]))
def test_the_inverse_sigmoid_gives_the_reward_back(logit: float, temperature: float) -> None:
    value = open_probability(logit * temperature, temperature)
    assert 0 < value < 1
    assert math.log(value / (1 - value)) == pytest.approx(logit, abs=1e-8)


def test_a_reward_that_its_sigmoid_loses_is_warned_of() -> None:
    with pytest.warns(RuntimeWarning, match=r"reward of 40 .* temperature of 2.5 or more"):
        assert 0.5 < open_probability(40.0, 1.0) < 1
    with pytest.warns(RuntimeWarning, match="reward of -1000"):
        assert open_probability(-1000.0, 1.0) > 0
    assert open_probability(40.0, 2.5) < open_probability(40.1, 2.5)
