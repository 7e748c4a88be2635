"""Answers: groups of equal ones, and the limits of the library that compares them."""

from __future__ import annotations

import importlib.util
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepscore.enums import Equality
from stepscore.errors import ExtraMissing
from stepscore.selection.answers import Comparer, group_answers
from stepscore.selection.equality.math_verify_worker import MAX_MEMORY_BYTES

needs_math_verify = pytest.mark.skipif(
    importlib.util.find_spec("math_verify") is None, reason="math-verify is not installed: stepscore[select]"
)


@given(st.lists(st.integers(-20, 20).map(str) | st.none(), max_size=10))
def test_group_has_its_first_answer_and_compares_distinct_strings_only(
    answers: list[str | None],
) -> None:
    asked: list[tuple[str, str]] = []

    def same(one: str, other: str) -> bool:
        asked.append((one, other))
        return int(one) % 3 == int(other) % 3

    groups = group_answers(answers, same)
    assert len(asked) == len(set(asked))
    assert all(one != other for one, other in asked)
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
    with Comparer(Equality.MATH) as comparer:
        assert comparer.same("0.5", r"\frac{1}{2}")
        with pytest.raises(ExtraMissing) as refused:
            comparer.same(r"\sqrt{8}", r"2\sqrt{2}")
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
            found.append(comparer.same(r"\sqrt{8}", r"2\sqrt{2}"))
            found.append(comparer.same(r"\sqrt{8}", r"\sqrt{2}"))
            found.append(comparer.same("}{", "\n\\"))

        thread = threading.Thread(target=ask)
        thread.start()
        thread.join()
        assert found == [True, False, False]
        assert comparer.undecided == 0


@pytest.mark.slow
@needs_math_verify
def test_an_answer_that_cannot_be_computed_is_asked_about_once() -> None:
    """By value, and as an expression; `seconds` is the processor time of one question."""
    for tower in (r"\pi^{9^{9^{9}}}", "x^{9^{9^{9}}}"):
        with Comparer(Equality.MATH, seconds=0.5) as comparer:
            others = [rf"{number}\sqrt{{2}}+y" for number in range(2, 9)]
            assert not any(comparer.same(tower, other) for other in others)
            assert comparer.undecided == len(others)
            assert comparer.asked <= len(others) + 1
            assert comparer.same(r"\sqrt{8}", r"2\sqrt{2}")  # a new process answers


@pytest.mark.slow
@needs_math_verify
def test_all_answers_that_cannot_be_computed_share_one_limit_of_time() -> None:
    with Comparer(Equality.MATH, seconds=0.5, lost_seconds=1.2) as comparer:
        towers = [rf"{number}\pi^{{9^{{9^{{9}}}}}}" for number in range(2, 12)]
        assert not any(comparer.same(tower, r"\sqrt{2}") for tower in towers)
        assert comparer.undecided == len(towers)
        assert comparer.asked < 6
        assert comparer.same("0.5", r"\frac12")  # rules go on


@pytest.mark.slow
@needs_math_verify
def test_the_memory_of_the_library_is_limited() -> None:
    with Comparer(Equality.MATH) as comparer:
        assert comparer.same(r"\sqrt{8}", r"2\sqrt{2}")
        worker = comparer._library._worker
        assert worker is not None
        limits = Path(f"/proc/{worker.pid}/limits").read_text(encoding="utf-8")
    assert f"{MAX_MEMORY_BYTES}" in next(line for line in limits.splitlines() if "address space" in line)


@pytest.mark.slow
@needs_math_verify
def test_modules_of_the_current_folder_are_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("math_verify", "sympy", "json", "logging"):
        (tmp_path / f"{module}.py").write_text("open('RAN', 'w')\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    with Comparer(Equality.MATH) as comparer:
        assert comparer.same(r"\sqrt{8}", r"2\sqrt{2}")
    assert not (tmp_path / "RAN").exists()
