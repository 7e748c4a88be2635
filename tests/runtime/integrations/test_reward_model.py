"""A scorer in the shapes that others call; partial solutions; errors that name their place."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from testing.watched import Watched

from stepscore import RewardModel, Scorer
from stepscore.engine.base import Engine
from stepscore.enums import Convention, Series
from stepscore.errors import InputError, InvalidRecord, NoSteps
from stepscore.prompt.template import split_steps, system_message
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


def test_a_mean_divides_by_the_tokens_of_the_response(exact: RewardModel) -> None:
    (result,) = exact.scorer.score([Record(QUESTION, ("3 * 4 = 12.", "So \\boxed{12}."))])
    counts = [end - (result.response_start - 1) + 1 for end in result.step_ends]
    means = [total / count for total, count in zip(result.cumulative_rewards, counts, strict=True)]
    assert RewardModel(exact.scorer, "mean").score([QUESTION], [[FINISHED]]) == [[means]]
    (differences,) = RewardModel(exact.scorer, "mean-difference").score([QUESTION], [[FINISHED]])[0]
    assert differences == [means[0], means[1] - means[0]]


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


OWN = "Please reason step by step, and put your final answer within \\boxed{}."
TURNS = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": FINISHED}]


def test_the_template_s_own_system_message_is_accepted(exact: RewardModel) -> None:
    assert exact.score_messages([{"role": "system", "content": OWN}, *TURNS]) == exact.score_messages(TURNS)


@given(st.sampled_from(["", "system", "reason", "Be brief.", OWN + " ", OWN[:-1], "\n" + OWN]) | st.text())
def test_any_other_system_message_is_refused(exact: RewardModel, text: str) -> None:
    """A part of the template's is another one too."""
    assume(text != OWN)
    with pytest.raises(InvalidRecord, match=r"^messages\[0\] differs from the system message"):
        exact.score_messages([{"role": "system", "content": text}, *TURNS])


@pytest.mark.parametrize(
    ("prefix", "expected"),
    [
        ("<s>system\nBe brief.<e>\n<s>user\n", "Be brief."),
        ("<s>system\n<e>\n<s>user\n", ""),
        ("<b><s>system<h>\n\nBe brief.<e><s>user<h>\n\n", "Be brief."),
        ("<s>user\n", None),
        ("<s>systematic\n<e><s>user\n", None),
        ("system\nBe brief.<e>\n<s>user\n", None),
    ],
)
def test_the_system_message_of_a_template_is_what_its_turn_holds(prefix: str, expected: str | None) -> None:
    assert system_message(prefix, re.compile("<.>")) == expected


def test_keys_of_a_message_that_are_null_or_empty_change_nothing(exact: RewardModel) -> None:
    answer = TURNS[1] | {"reasoning_content": None, "tool_calls": [], "refusal": ""}
    assert exact.score_messages([TURNS[0], answer]) == exact.score_messages(TURNS)


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


# Defaults


TOO_LONG = "1 + 1 = 2. " * 900
UNSCORABLE = st.sampled_from(["", "\n\n", TOO_LONG, "\ud800", "a\n\n\udc00"])


def test_an_output_that_cannot_be_scored_gives_the_default_and_changes_no_other(exact: RewardModel) -> None:
    expected = exact.score([QUESTION], [[FINISHED, PARTIAL]])[0]

    @settings(max_examples=10, deadline=None)
    @given(st.lists(UNSCORABLE, min_size=1, max_size=4), st.sampled_from([None, [-1.0], "no"]))
    def holds(bad: list[str], default: Any) -> None:
        found = exact.score([QUESTION, QUESTION], [[*bad, FINISHED, PARTIAL], bad], default=default)
        assert found == [[*[default] * len(bad), *expected], [default] * len(bad)]

    holds()


def test_a_default_serves_steps_and_messages_too(exact: RewardModel) -> None:
    assert exact(QUESTION, [], default=None) is None
    assert exact(QUESTION, ["a", " "], default=[0.0]) == [0.0]
    empty = [TURNS[0], {"role": "assistant", "content": ""}]
    assert exact.score_messages(empty, default=None) is None
    assert exact.score_messages([TURNS, empty], default=None)[1] is None


def test_a_default_hides_no_mistake_of_the_caller(exact: RewardModel) -> None:
    with pytest.raises(InvalidRecord, match=r"outputs\[0\]\[0\] must be a string, not NoneType"):
        exact.score([QUESTION], [[None]], default=None)  # type: ignore[list-item]
    with pytest.raises(InvalidRecord, match="must be one user and one assistant message"):
        exact.score_messages([TURNS[0]], default=None)


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
        (["q"], [["a", ""]], NoSteps, r"^outputs\[0\]\[1\]: the text is empty"),
        (["q"], [["a", "\n\n"]], NoSteps, r"^outputs\[0\]\[1\]: the text is white space"),
        (
            ["q"],
            [["a", "x" * 9000]],
            InputError,
            r"outputs\[0\]\[1\]: at least \d+ tokens exceed the context length",
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
        ([USER, {"role": "assistant", "content": " "}], r"messages\[-1\]: the text is white space"),
        (
            [USER, {"role": "assistant", "content": "a", "reasoning_content": "b"}],
            r"messages\[1\] has 'reasoning_content': only role and content",
        ),
        (
            [USER | {"name": "Ann"}, {"role": "assistant", "content": "a"}],
            r"messages\[0\] has 'name': only role and content",
        ),
    ],
)
def test_messages_name_what_is_wrong(exact: RewardModel, messages: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        exact.score_messages(messages)
