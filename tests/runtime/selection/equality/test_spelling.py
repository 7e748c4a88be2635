"""Spelling: another typography of the same answer."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepscore.selection.equality.spelling import plain

PARTS = st.sampled_from(
    [
        *("1", "000", "12", "x", r"\,", "~", " ", r"\dfrac", r"\frac", r"\sqrt3", "{", "}", "$", r"\$", "**"),
        *(r"\text{a}", r"\text{ cm}", "²", "⁻¹", "½", "−", "√2", r"\left(", r"\right)", r"\%", r"^{\circ}"),
        *("…", "...", "or", "pi", "."),
    ]
)


@given(st.lists(PARTS, max_size=7).map("".join) | st.text(max_size=12))
def test_plain_spelling_stays_as_it_is(answer: str) -> None:
    assert plain(plain(answer)) == plain(answer)


@pytest.mark.parametrize(
    ("answer", "spelled"),
    [
        (r"$\left( 3, \tfrac{\pi}{2} \right)$", r"( 3, \frac{\pi}{2} )"),
        (r"\(\displaystyle 5\)", "5"),
        ("x\u2212\u00bd", r"x-\frac{1}{2}"),
        ("10\u207b\u00b3", "10^{-3}"),
        (r"\mathbf{7}", "7"),
        (r"5\mathrm{~kg}", r"5 \text{kg}"),
        (r"3{,}14", "3.14"),
        (r"\$18.", "$18"),
        ("**73**", "73"),
        (r"\begin{pmatrix}1\\ 2\end{pmatrix}", r"\begin{pmatrix}1\\ 2\end{pmatrix}"),
        (r"\frac12 \text{ or } \frac 3 4", r"\frac{1}{2} , \frac{3}{4}"),
    ],
)
def test_typography_is_removed(answer: str, spelled: str) -> None:
    assert plain(answer) == spelled
