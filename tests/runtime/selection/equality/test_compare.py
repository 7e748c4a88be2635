"""Equality of answers: tables of pairs, and the laws of an equality."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from testing.answer_pairs import EQUAL, UNEQUAL

from stepscore.enums import Equality
from stepscore.selection.answers import Comparer, group_answers
from stepscore.selection.equality.compare import same
from stepscore.selection.equality.library import Undecided
from stepscore.selection.equality.reading import read

needs_math_verify = pytest.mark.skipif(
    importlib.util.find_spec("math_verify") is None, reason="math-verify is not installed: stepscore[select]"
)
PARTS = st.sampled_from(
    [
        *(
            "1",
            "2",
            "3",
            "0.5",
            "10",
            "x",
            "y",
            "e",
            r"\frac{1}{2}",
            r"\sqrt{2}",
            r"\pi",
            r"\infty",
            "apples",
        ),
        *("(", ")", "[", "]", r"\{", r"\}", "{", "}", ",", ";", ":", r"\,", ".", "=", "<", r"\le", r"\in"),
        *("+", "-", "^", "_", "!", r"\cup", r"\pm", r"\angle", "ABC", "AB", "%", "$", r"\$", r"^\circ"),
        *(r"\ldots", r"\text{cm}", r"\text{m}", r"\text{or}"),
    ]
)
ANSWERS = st.lists(PARTS, min_size=1, max_size=6).map("".join) | st.text(max_size=8)


class NoLibrary:
    """Stands for math-verify: it reads nothing, and equal texts are equal."""

    def value(self, text: str) -> None:
        return None

    def equal(self, first: str, second: str) -> bool:
        return first == second


def decided(one: str, other: str) -> bool | None:
    try:
        return same(read(one), read(other), NoLibrary())
    except Undecided:
        return None


@pytest.fixture(scope="module")
def comparer() -> Iterator[Comparer]:
    with Comparer(Equality.MATH) as found:
        yield found


@pytest.mark.slow
@needs_math_verify
@pytest.mark.parametrize("kind", EQUAL)
def test_equal_answers_are_equal_in_both_orders(comparer: Comparer, kind: str) -> None:
    wrong = [pair for pair in EQUAL[kind] if not (comparer.same(*pair) and comparer.same(*reversed(pair)))]
    assert not wrong


@pytest.mark.slow
@needs_math_verify
@pytest.mark.parametrize("kind", UNEQUAL)
def test_unequal_answers_are_unequal_in_both_orders(comparer: Comparer, kind: str) -> None:
    wrong = [pair for pair in UNEQUAL[kind] if comparer.same(*pair) or comparer.same(*reversed(pair))]
    assert not wrong


@given(ANSWERS, ANSWERS)
def test_equality_is_symmetric(one: str, other: str) -> None:
    assert decided(one, other) == decided(other, one)


@given(ANSWERS)
def test_an_answer_equals_itself_however_it_is_set(answer: str) -> None:
    assert decided(answer, answer)
    assert decided(f" {answer} ", answer)


@given(
    st.lists(st.sampled_from(["10", "10 m", "10 km", "10.0", "11", "10{,}0", "100", "x"]), max_size=8),
    st.randoms(),
)
def test_groups_do_not_depend_on_the_order_of_the_samples(answers: list[str], random) -> None:  # type: ignore[no-untyped-def]
    def partition(given: list[str]) -> set[frozenset[str]]:
        groups = group_answers(given, lambda a, b: bool(decided(a, b)))
        return {
            frozenset(a for a, g in zip(given, groups, strict=True) if g == group) for group in set(groups)
        }

    shuffled = random.sample(answers, len(answers))
    assert partition(answers) == partition(shuffled)


def test_members_of_a_group_equal_each_other() -> None:
    groups = group_answers(["10", "10 m", "10 km", "10"], lambda a, b: bool(decided(a, b)))
    assert groups == ["10", "10", "10 km", "10"]


@pytest.mark.parametrize(
    "tower", ["2^{9^{9^{9}}}", r"\frac{5^{(5^{(5^{(5^3)})}-4)}-5}{16}", "(10^9)!", "1e999999", "7" * 3000]
)
def test_numbers_too_large_to_compute_are_undecided_at_once(tower: str) -> None:
    assert decided(tower, "42") is None
    assert decided(tower, tower.replace("9", "8").replace("7", "6").replace("5", "3")) is None
    assert decided(tower, tower)
