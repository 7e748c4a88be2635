"""Results as values: they compare, become plain values, and show themselves in one line and as a table."""

from __future__ import annotations

import copy
import json
import pickle
import re
from collections.abc import Callable

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepscore import Result, TokenResult
from stepscore.result_view import SHOWN_CHARS, SHOWN_STEPS

LOGPROBS = np.array([-0.5, -0.25, -1.0], np.float32)
REWARDS = st.floats(-5, 5, allow_nan=False)


def result(**fields: object) -> Result:
    made = {
        "cumulative_rewards": [0.5, -0.25],
        "step_rewards": [0.5, -0.75],
        "outcome_reward": -0.25,
        "num_tokens": 4,
        "response_start": 1,
        "first_summed": 0,
        "step_ends": [0, 2],
        "steps": ("One.", "Two."),
        "token_ids": np.arange(4),
        "token_texts": ["a", "b", "c", "d"],
        "policy_logprobs": LOGPROBS.copy(),
        "reference_logprobs": LOGPROBS.copy(),
    }
    return Result(**made | fields)  # type: ignore[arg-type]


def token_result(**fields: object) -> TokenResult:
    made = {
        "policy_logprobs": LOGPROBS.copy(),
        "reference_logprobs": LOGPROBS.copy(),
        "token_rewards": np.zeros(3, np.float32),
        "step_ends": [2],
        "cumulative_rewards": [0.0],
        "step_rewards": [0.0],
        "outcome_reward": 0.0,
    }
    return TokenResult(**made | fields)  # type: ignore[arg-type]


def changed(value: object) -> object:
    """A value of the same type that is not equal."""
    if isinstance(value, np.ndarray):
        return value + 1
    if isinstance(value, list | tuple):
        return value[:-1]
    return not value if isinstance(value, bool) else value + 1  # type: ignore[operator]


@pytest.mark.parametrize("make", [result, token_result])
def test_results_are_equal_if_every_field_is(make: Callable[..., msgspec.Struct]) -> None:
    one = make()
    assert one == make()
    for name in one.__struct_fields__:
        other = make(**{name: changed(getattr(one, name))})
        assert one != other
        assert not one == other  # noqa: SIM201 (both operators)


def test_a_result_with_logprobs_differs_from_one_without() -> None:
    assert result() != result(policy_logprobs=None)
    assert result(policy_logprobs=None) == result(policy_logprobs=None)


def test_results_of_texts_and_of_ids_differ_from_each_other_and_from_other_things() -> None:
    assert result() != token_result()
    assert result() != result().to_dict()


@pytest.mark.parametrize("make", [result, token_result])
def test_results_survive_pickling_and_copying(make: Callable[..., msgspec.Struct]) -> None:
    one = make()
    assert pickle.loads(pickle.dumps(one)) == copy.copy(one) == copy.deepcopy(one) == one


@pytest.mark.parametrize("make", [result, token_result])
def test_a_dict_has_all_fields_as_values_of_json(make: Callable[..., Result | TokenResult]) -> None:
    one = make()
    values = json.loads(json.dumps(one.to_dict()))
    assert list(values) == list(one.__struct_fields__)
    for name, value in values.items():
        assert np.array_equal(getattr(one, name), value)


def test_a_dict_leaves_out_what_was_not_asked_for() -> None:
    without = result(token_ids=None, token_texts=None, policy_logprobs=None, reference_logprobs=None)
    assert {*result().to_dict()} - {*without.to_dict()} == {
        "token_ids",
        "token_texts",
        "policy_logprobs",
        "reference_logprobs",
    }


def test_pandas_takes_the_dicts_of_results_as_rows() -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame([each.to_dict() for each in (result(), result(outcome_reward=1.0))])
    assert frame["outcome_reward"].tolist() == [-0.25, 1.0]
    assert frame["steps"].tolist() == [["One.", "Two."]] * 2


def test_a_result_of_a_thousand_steps_is_one_short_line() -> None:
    many = result(step_rewards=[0.123456] * 1000)
    assert repr(many) == (
        "Result(outcome_reward=-0.25, step_rewards=[0.1235, 0.1235, 0.1235, ..., 0.1235], num_tokens=4, "
        "policy_logprobs=float32[3], reference_logprobs=float32[3])"
    )


# The table


def html(rewards: list[float], steps: tuple[str, ...]) -> str:
    cumulative = np.cumsum(rewards).tolist()
    return result(step_rewards=rewards, cumulative_rewards=cumulative, steps=steps)._repr_html_()


def test_a_table_escapes_the_text_of_steps() -> None:
    table = html([0.1], ("<script>alert('&')</script> \x1b[31m if a < b",))
    assert "<script" not in table
    assert "&lt;script&gt;alert(&#x27;&amp;&#x27;)" in table
    assert "\x1b" not in table
    assert "a &lt; b" in table


@given(st.lists(REWARDS, min_size=1, max_size=8))
def test_a_table_marks_the_lowest_step_and_colors_by_sign(rewards: list[float]) -> None:
    rows = re.findall(r'<tr style="background:rgba\((\d+),.*?,([\d.]+)\)"><td>(&gt; )?', html(rewards, ()))
    assert [mark != "" for _, _, mark in rows].index(True) == rewards.index(min(rewards))
    assert sum(mark != "" for _, _, mark in rows) == 1
    for reward, (red, alpha, _) in zip(rewards, rows, strict=True):
        assert (int(red) > 128) == (reward < 0)
        assert 0 <= float(alpha) <= 0.5


def test_a_table_of_a_huge_solution_is_small() -> None:
    table = html([0.1] * 5000, ("x" * 100_000,) * 5000)
    assert f"{5000 - SHOWN_STEPS:,} more steps" in table
    assert len(table) < SHOWN_STEPS * (SHOWN_CHARS + 300) + 1000


def test_a_table_of_a_result_of_ids_has_no_column_of_texts() -> None:
    table = token_result()._repr_html_()
    assert "over 3 tokens" in table
    assert "<th>text</th>" not in table
