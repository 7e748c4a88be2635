"""A scorer in the shapes that others call; partial solutions; errors that name their place."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from testing.watched import Watched

from stepscore import RewardModel, Scorer
from stepscore.engine.base import Engine
from stepscore.enums import Convention, Series
from stepscore.errors import InputError, InvalidRecord, NoSteps
from stepscore.prompt.template import split_steps
from stepscore.records import Record

QUESTION = "Ann has 3 bags of 4 pens. How many?"
FINISHED = "3 * 4 = 12.\n\nSo \\boxed{12}."
PARTIAL = "3 * 4 = 12.\n\n"
LONGER = "3 * 4 = 12.\n\nThere are 12 pens.\n\n"


@pytest.fixture(scope="module", params=list(Convention))
def scorer(tiny_pair: Path, request: pytest.FixtureRequest) -> Iterator[Scorer]:
    with Scorer.load(tiny_pair, convention=request.param, beta=1.0) as scorer:
        yield scorer


@pytest.fixture(scope="module")
def exact(tiny_pair: Path) -> Iterator[RewardModel]:
    with Scorer.load(tiny_pair, convention="exact", beta=1.0) as scorer:
        yield RewardModel(scorer)


# Shapes


def test_score_gives_questions_outputs_steps(scorer: Scorer) -> None:
    given = [[FINISHED, PARTIAL], [], [LONGER]]
    found = RewardModel(scorer).score([QUESTION, "none?", QUESTION], given)
    assert [[len(steps) for steps in outputs] for outputs in found] == [[2, 1], [], [2]]
    assert all(type(value) is float for outputs in found for steps in outputs for value in steps)


def test_a_finished_text_is_the_record_of_its_steps(scorer: Scorer) -> None:
    (result,) = scorer.score([Record(QUESTION, ("3 * 4 = 12.", "So \\boxed{12}."))])
    prm = RewardModel(scorer)
    assert prm.score([QUESTION], [[FINISHED]]) == [[result.cumulative_rewards]]
    assert RewardModel(scorer, "step").score([QUESTION], [[FINISHED]]) == [[result.step_rewards]]
    assert prm(QUESTION, ["3 * 4 = 12.", "So \\boxed{12}."]) == result.cumulative_rewards


def test_the_series_is_cumulative_unless_told_otherwise(exact: RewardModel) -> None:
    assert exact.series is Series.CUMULATIVE
    with pytest.raises(ValueError, match="nonsense"):
        RewardModel(exact.scorer, "nonsense")


def test_messages_may_be_one_conversation_or_several(exact: RewardModel) -> None:
    conversation = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": FINISHED}]
    expected = exact.score([QUESTION], [[FINISHED]])[0][0]
    assert exact.score_messages(conversation) == expected
    assert np.allclose(exact.score_messages([conversation] * 2), [expected] * 2, rtol=0, atol=1e-5)
    assert exact.score_messages([]) == []


def test_the_template_s_own_system_message_is_accepted_and_no_other(exact: RewardModel) -> None:
    own = "Please reason step by step, and put your final answer within \\boxed{}."
    turns = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": FINISHED}]
    with_own = [{"role": "system", "content": own}, *turns]
    assert exact.score_messages(with_own) == exact.score_messages(turns)
    with pytest.raises(InvalidRecord, match=r"messages\[0\] differs from the system message"):
        exact.score_messages([{"role": "system", "content": "Be brief."}, *turns])


# Partial solutions


def test_a_search_that_goes_on_leaves_the_rewards_it_had(exact: RewardModel) -> None:
    """By convention `exact`, whatever comes next: what was read at a blank line stays."""
    text, before = "", []
    for step in ("3 * 4 = 12.\n\n", "There are 12 pens.\n\n", "Is that all?\n\n", "So \\boxed{12}."):
        text += step
        ((rewards,),) = exact.score([QUESTION], [[text]])
        assert np.allclose(rewards[: len(before)], before, rtol=0, atol=1e-4)
        before = rewards
    assert len(before) == 4


def test_a_partial_solution_holds_no_end_of_turn(scorer: Scorer) -> None:
    """Its last log-prob is that of the blank line, in every convention."""
    encoder = scorer.pair.encoder()
    open_, closed = (
        encoder.encode(QUESTION, ["One.", "Two."], scorer.convention, unfinished=each)
        for each in (True, False)
    )
    assert encoder.texts(open_.token_ids.tolist())[-1].endswith("\n")
    assert open_.step_ends[-1] == len(open_.token_ids) - 2
    assert open_.step_ends[0] == closed.step_ends[0]


def test_steps_as_a_list_may_be_unfinished_too(exact: RewardModel) -> None:
    ((text,),) = exact.score([QUESTION], [[LONGER]])
    assert exact(QUESTION, ["3 * 4 = 12.", "There are 12 pens."], finished=False) == text


BLANK_LINE = re.compile(r"\r?\n[^\S\n]*\n")


@given(st.text("ab \r\n\t", max_size=30))
def test_splitting_loses_no_character_but_those_of_blank_lines_and_makes_no_empty_step(text: str) -> None:
    steps, unfinished = split_steps(text)
    assert all(step.strip() for step in steps)
    if not steps:
        assert not text.strip()
        return
    at = 0
    for index, step in enumerate(steps):
        assert text.startswith(step, at)
        at += len(step)
        if index < len(steps) - 1 or unfinished:
            blank = BLANK_LINE.match(text, at)
            assert blank is not None
            at = blank.end()
    assert at == len(text)
    assert unfinished == (re.search(BLANK_LINE.pattern + r"\Z", text) is not None)


@given(
    st.lists(st.sampled_from(["3 * 4 = 12.", "So 12.\nYes.", "  x"]), min_size=1, max_size=4),
    st.sampled_from(["\n\n", "\r\n\r\n", "\n \n", "\n\t \r\n"]),
)
def test_lines_that_hold_only_spaces_or_end_in_crlf_are_blank_lines(parts: list[str], blank: str) -> None:
    assert split_steps(blank.join(parts)) == (tuple(parts), False)
    assert split_steps(blank.join(parts) + blank) == (tuple(parts), True)


# Sharing


def test_beams_of_one_problem_are_computed_once_in_a_call(tiny_pair: Path, tiny_engine: Engine) -> None:
    watched = Watched(tiny_pair, tiny_engine, convention="exact")
    model = RewardModel(watched.scorer)
    model.score([QUESTION], [[PARTIAL]])
    once = watched.engine.rows()
    model.score([QUESTION] * 3, [[PARTIAL]] * 3)
    assert watched.engine.rows() == 2 * once


# Errors


@pytest.mark.parametrize(
    ("questions", "outputs", "error", "message"),
    [
        (["q"], [["a"], ["b"]], InvalidRecord, "1 questions, but outputs for 2"),
        ("q", [["a"]], InvalidRecord, "questions must be a list, not str"),
        (["q"], ["a"], InvalidRecord, r"outputs\[0\] must be a list, not str"),
        ([1], [["a"]], InvalidRecord, r"questions\[0\] must be a string, not int"),
        (
            ["q", "q"],
            [["a"], ["a", None]],
            InvalidRecord,
            r"outputs\[1\]\[1\] must be a string, not NoneType",
        ),
        (["q"], [["a", ""]], NoSteps, r"outputs\[0\]\[1\] is empty"),
        (["q"], [["a", "\n\n"]], NoSteps, r"outputs\[0\]\[1\] is empty"),
        (
            ["q"],
            [["a", "x" * 9000]],
            InputError,
            r"outputs\[0\]\[1\]: \d+ tokens exceed the context length",
        ),
        (["q"], [["\ud800"]], InvalidRecord, r"outputs\[0\]\[0\]: steps\[0\] contains a lone surrogate"),
    ],
)
def test_score_names_what_is_wrong(
    exact: RewardModel, questions: Any, outputs: Any, error: type[InputError], message: str
) -> None:
    with pytest.raises(error, match=message):
        exact.score(questions, outputs)


@pytest.mark.parametrize(
    ("prompt", "steps", "message"),
    [
        (None, ["a"], "prompt must be a string"),
        ("p", "a", "steps must be a list, not str"),
        ("p", ["a", 2], r"steps\[1\] must be a string, not int"),
        ("p", ["a", " "], r"^steps\[1\] is white space"),
        ("p", [], "^`steps` is empty"),
    ],
)
def test_steps_name_what_is_wrong(exact: RewardModel, prompt: Any, steps: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        exact(prompt, steps)


USER = {"role": "user", "content": "q"}


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ("text", "messages must be a list"),
        ([USER], "messages must be one user and one assistant message, not user"),
        ([USER, {"role": "assistant"}], r"messages\[1\] must be a message"),
        ([USER, {"role": "assistant", "content": [1]}], r"messages\[1\].content must be a string, not list"),
        ([[USER], "x"], r"messages\[0\] must be one user and one assistant"),
        ([USER, {"role": "assistant", "content": " "}], r"messages\[-1\] is empty"),
    ],
)
def test_messages_name_what_is_wrong(exact: RewardModel, messages: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        exact.score_messages(messages)
