"""A record is read by any accepted name, by the fields that are named, or from a conversation."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepscore.errors import InvalidRecord
from stepscore.records import (
    PROBLEM_NAMES,
    STEPS_NAMES,
    Reading,
    Record,
    record_from,
    record_of_output,
    split_at_blank_lines,
)

Fields = dict[str, Any]
USER, ASSISTANT = {"role": "user", "content": "p"}, {"role": "assistant", "content": "s\r\n\r\nt\n"}
RECORD = Record("p", ("s", "t"))

READ: dict[str, tuple[Reading, Fields]] = {
    "question and solution": (Reading(), {"question": "p", "solution": ["s", "t"]}),
    "gold solution beside steps": (Reading(), {"problem": "p", "steps": ["s", "t"], "solution": "gold"}),
    "messages": (Reading(), {"messages": [USER, ASSISTANT]}),
    "messages beside the same problem": (Reading(), {"problem": "p", "messages": [USER, ASSISTANT]}),
    "messages beside a gold solution": (Reading(), {"solution": "gold", "messages": [USER, ASSISTANT]}),
    "messages of the problem alone": (Reading(), {"messages": [USER], "steps": ["s", "t"]}),
    "messages that nobody asks for": (Reading(), {"problem": "p", "steps": ["s", "t"], "messages": 7}),
    "problem field": (Reading("task"), {"task": "p", "problem": 7, "steps": ["s", "t"]}),
    "steps field": (Reading(None, "out"), {"problem": "p", "steps": 7, "out": ["s", "t"]}),
    "both fields": (Reading("a", "b"), {"a": "p", "b": ["s", "t"], "query": 7, "completions": 7}),
    "split": (Reading(split=True), {"problem": "p", "solution": "s\n\nt", "answer": "42"}),
    "split of a field": (Reading(None, "out", split=True), {"problem": "p", "out": "\ns\n \t\n\n\nt\n\n"}),
    "split of what is split": (Reading(split=True), {"problem": "p", "steps": ["s", "t"], "solution": "x"}),
}


@pytest.mark.parametrize(("reading", "fields"), READ.values(), ids=READ.keys())
def test_a_record_is_read(reading: Reading, fields: Fields) -> None:
    assert reading.record(fields) == RECORD


REFUSED: dict[str, tuple[Reading, Fields, str]] = {
    "no names": (
        Reading(),
        {"q": "p", "a": ["s"]},
        "`problem` is missing: give `problem`, `question`, `query`, `prompt` or `messages`, or name another "
        "field by --problem-field; the fields are 'q', 'a'",
    ),
    "no steps": (
        Reading(),
        {"problem": "p"},
        "`steps` is missing: give `steps`, `solution`, `answer`, `completions`",
    ),
    "many names": (Reading(), {str(i): i for i in range(99)}, "'11', ...$"),
    "empty": (Reading(), {}, "the fields are none"),
    "one text": (Reading(), {"problem": "p", "solution": "s\n\nt"}, "--split splits one text at blank lines"),
    "blank text": (Reading(split=True), {"problem": "p", "steps": 7}, "list of strings, not a number"),
    "another field": (
        Reading("task"),
        {"problem": "p", "steps": ["s"]},
        "no field `task`; the fields are 'problem'",
    ),
    "another field, messages": (Reading(None, "x"), {"messages": [USER, ASSISTANT]}, "there is no field `x`"),
    "two problems": (
        Reading(),
        {"problem": "p", "question": "q", "steps": ["s"]},
        "differ: name one by --problem",
    ),
    "another problem": (Reading(), {"problem": "q", "messages": [USER, ASSISTANT]}, "both given and differ"),
    "no list": (Reading(), {"messages": {}}, "`messages` must be a list, not an object"),
    "no object": (
        Reading(),
        {"messages": ["p"]},
        r"`messages\[0\]` must be an object with `role` and `content`",
    ),
    "parts": (Reading(), {"messages": [USER | {"content": [{"text": "p"}]}]}, "content` must be a string"),
    "system": (
        Reading(),
        {"messages": [{"role": "system", "content": "x"}, USER, ASSISTANT]},
        "drop a system",
    ),
    "turns": (
        Reading(),
        {"messages": [USER, ASSISTANT, USER, ASSISTANT]},
        "not user, assistant, user, assistant",
    ),
    "reasoning": (
        Reading(),
        {"messages": [USER, ASSISTANT | {"reasoning_content": "hm"}]},
        r"`messages\[1\].reasoning_content` would not be scored",
    ),
}


@pytest.mark.parametrize(("reading", "fields", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_what_is_no_record_says_what_was_found_and_what_to_do(
    reading: Reading, fields: Fields, message: str
) -> None:
    with pytest.raises(InvalidRecord, match=message):
        reading.record(fields)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["role", "content"]), inner),
    max_leaves=8,
)
NAMES = st.sampled_from([*PROBLEM_NAMES, *STEPS_NAMES, "messages", "x"])
READINGS = st.builds(Reading, st.none() | NAMES, st.none() | NAMES, st.booleans())


@given(READINGS, st.dictionaries(NAMES, VALUES))
def test_fields_of_any_type_are_a_record_or_an_error(reading: Reading, fields: Fields) -> None:
    try:
        record = reading.record(fields)
    except InvalidRecord:
        return
    assert isinstance(record.problem, str)
    assert all(isinstance(step, str) for step in record.steps)


@given(
    st.lists(st.text(min_size=1).filter(str.strip), min_size=1),
    st.sampled_from(["\n\n", "\r\n\r\n", "\n \t\n\n"]),
)
def test_what_is_joined_by_blank_lines_is_split_again(texts: list[str], blank: str) -> None:
    steps = ["".join(text.split()) for text in texts]
    assert list(split_at_blank_lines(blank.join(steps) + blank)) == steps


@given(st.text(st.sampled_from("a \n\r\t\u2028")))
def test_a_split_leaves_no_blank_line_and_loses_no_other_character(text: str) -> None:
    steps = split_at_blank_lines(text)
    assert "".join("".join(steps).split()) == "".join(text.split())
    assert all(step.strip() and split_at_blank_lines(step) == (step.strip(),) for step in steps)


def test_an_output_line_is_read_by_problem_and_steps_where_it_has_both() -> None:
    fields = {"problem": "p", "steps": ["s", "t"], "question": "q", "completions": ["u"]}
    assert record_of_output(fields) == RECORD
    assert record_of_output({"query": "p", "answer": ["s", "t"]}) == record_from(
        {"query": "p", "answer": ["s", "t"]}
    )
