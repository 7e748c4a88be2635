r"""Final answers: what the last \boxed{} holds, and what a field holds."""

from __future__ import annotations

import re

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepscore.jobs.final_answers import answer_text, boxed


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"\boxed{5}", "5"),
        (r"first \boxed{5}, then \boxed{6}.", "6"),
        (r"\boxed{\frac{1}{2}} and {braces}", r"\frac{1}{2}"),
        (r"\boxed {5}", "5"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{5} and \boxed{unclosed", "5"),
        (r"\boxed{ }", ""),
        ("the answer is 5", None),
        (r"\boxed{5\}", None),
    ],
)
def test_an_answer_is_what_the_last_closed_box_holds(text: str, answer: str | None) -> None:
    assert boxed(text) == answer


@given(st.text(alphabet="ab{}\\", max_size=30))
def test_any_text_can_be_searched_for_a_box(text: str) -> None:
    found = boxed("\\boxed{" + text)
    assert found is None or found in text


def closed_box(text: str) -> str | None:
    """Search every box on its own: right, and quadratic in the number of boxes."""
    for found in reversed(list(re.finditer(r"\\boxed\s*\{", text))):
        depth, at = 1, found.end()
        while at < len(text):
            if text[at] == "\\":
                at += 2
                continue
            depth += {"{": 1, "}": -1}.get(text[at], 0)
            if not depth:
                return text[found.end() : at].strip()
            at += 1
    return None


@given(
    st.lists(st.sampled_from([r"\boxed{", r"\boxed {", "{", "}", "\\", "a", " "]), max_size=12).map("".join)
)
def test_one_pass_finds_what_a_search_of_every_box_finds(text: str) -> None:
    assert boxed(text) == closed_box(text)


def test_a_million_open_boxes_are_passed_over_once() -> None:
    assert boxed(r"\boxed{7}" + r"\boxed{" * 1_000_000) == "7"


@pytest.mark.parametrize(
    ("field", "answer"),
    [
        (b'" 1/2 "', "1/2"),
        (b"2.50", "2.50"),
        (b'["2"]', "2"),
        (b"[7]", "7"),
        (b'["2", "3"]', None),
        (b"[]", None),
        (b"null", None),
        (b"true", None),
        (b'""', None),
        (b'{"value": 2}', None),
    ],
)
def test_a_field_holds_one_answer_or_none(field: bytes, answer: str | None) -> None:
    assert answer_text(msgspec.Raw(field)) == answer
