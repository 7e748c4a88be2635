r"""Answers: what the last \boxed{} holds, and which are the same."""

from __future__ import annotations

import importlib.util
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepscore.enums import Equality
from stepscore.errors import ExtraMissing
from stepscore.jobs.scored_records import boxed
from stepscore.selection.answers import Comparer, group_answers

needs_math_verify = pytest.mark.skipif(
    importlib.util.find_spec("math_verify") is None, reason="math-verify is not installed: stepscore[select]"
)


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


@given(st.lists(st.integers(-20, 20).map(str) | st.none(), max_size=10))
def test_group_has_its_first_answer_and_compares_distinct_strings_only(
    answers: list[str | None],
) -> None:
    asked: list[tuple[str, str]] = []

    def same(gold: str, given: str) -> bool:
        asked.append((gold, given))
        return int(gold) % 3 == int(given) % 3

    groups = group_answers(answers, same)
    assert len(asked) == len(set(asked))
    assert all(gold != given for gold, given in asked)
    for answer, group in zip(answers, groups, strict=True):
        assert (answer is None) == (group is None)
        if answer is not None and group is not None:
            first = next(a for a in answers if a is not None and int(a) % 3 == int(answer) % 3)
            assert group == first


def test_equal_characters_and_whole_numbers_need_no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with Comparer(Equality.MATH) as comparer:
        assert comparer.same(r"\frac{1}{2}", r"\frac{1}{2}")
        assert comparer.same("7", "+007")
        assert comparer.same("-0", "0")
        assert not comparer.same("7", "-7")
        assert not comparer.same("1" + "0" * 9999, "1" + "0" * 9998)


def test_math_equality_without_library_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with Comparer(Equality.MATH) as comparer, pytest.raises(ExtraMissing) as refused:
        comparer.same("0.5", r"\frac{1}{2}")
    assert "stepscore[select]" in str(refused.value.hint)


def test_exact_equality_never_asks_the_library() -> None:
    with Comparer(Equality.EXACT) as comparer:
        assert not comparer.same("7", "07")
        assert not comparer.same("0.5", r"\frac{1}{2}")


@pytest.mark.slow
@needs_math_verify
def test_the_library_sees_through_notation_from_any_thread() -> None:
    found: list[bool] = []
    with Comparer(Equality.MATH) as comparer:

        def ask() -> None:
            found.append(comparer.same("900,000,000", "900000000"))
            found.append(comparer.same(r"\frac{11}{10}", r"1\frac{1}{10}"))
            found.append(comparer.same(r"\frac{3}{8}", r"\frac{5}{16}"))
            found.append(comparer.same("}{", "\n\\"))

        thread = threading.Thread(target=ask)
        thread.start()
        thread.join()
        assert found == [True, True, False, False]
        assert comparer.undecided == 0


@pytest.mark.slow
@needs_math_verify
def test_an_answer_too_large_to_compute_is_given_up_and_the_next_is_compared() -> None:
    with Comparer(Equality.MATH, seconds=0.5) as comparer:
        assert not comparer.same("2003^{2002^{2001}}", "5x")
        assert comparer.undecided == 1
        assert not comparer.same("2003^{2002^{2001}}", "5x")  # remembered
        assert comparer.undecided == 1
    with Comparer(Equality.MATH) as comparer:
        assert comparer.same("0.5", r"\frac12")
