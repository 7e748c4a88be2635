"""Spans of a text: what is a formula, bold or a list item, and what stays as typed."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from testing.shared_data import SHARED_DATA

from stepscore.report.formulas import MAX_CHARS, Formulas
from stepscore.report.markup import BOLD, HEADING, ITEM, spans

PIECES = [
    *("\\(", "\\)", "\\[", "\\]", "$", "$$", "**", "\n", "\n\n", "- ", "1. ", "## ", "\\", "x^2", " "),
    *("\\frac{1}{2}", "\\begin{align}", "\\end{align}", "a&=b\\\\", "{", "}", "\U0001f600", "é", "word"),
]


def found(text: str) -> list[tuple[str, int]]:
    """The parts of an ASCII text that are spans, with a kind; 0 for every formula."""
    flat = spans(text, Formulas())
    starts, ends, kinds = flat[::3], flat[1::3], flat[2::3]
    return [(text[s:e], min(kind, 0)) for s, e, kind in zip(starts, ends, kinds, strict=True)]


@given(st.lists(st.sampled_from(PIECES)).map("".join) | st.text(st.characters(exclude_categories=["Cs"])))
def test_spans_of_any_text_are_within_it_and_nest(text: str) -> None:
    formulas = Formulas()
    flat = spans(text, formulas)
    size = len(text.encode("utf-16-le")) // 2
    open_ends = [size]
    previous = 0
    for start, end, kind in zip(flat[::3], flat[1::3], flat[2::3], strict=True):
        assert previous <= start < end <= size
        while start >= open_ends[-1] and len(open_ends) > 1:
            open_ends.pop()
        assert end <= open_ends[-1]
        assert kind < len(formulas.trees)
        open_ends.append(end)
        previous = start


@pytest.mark.parametrize(
    "formula",
    [
        *("$x^2$", "$$x$$", r"\(x\)", r"\[x\]", "\\[\nx\n\\]", r"$\$9$", r"$AB=AC$", "$.03$", "$6,$"),
        *(r"\begin{align*}a&=b\\c&=d\end{align*}", r"\(a\\[2pt]b\)", r"\[\text{two words} \]", r"\boxed{38}"),
    ],
)
def test_formulas_are_found_by_every_delimiter(formula: str) -> None:
    assert found(f"so {formula}.") == [(formula, 0)]


@pytest.mark.parametrize(
    "text",
    [
        *("$5 and $10", "$5-$10", "from $5, to 10$5", "costs $ 5 $ now", "5*13=$65=$65", "3000=$3000=$"),
        *(
            r"\$5 and \$6",
            r"\\(x\\)",
            "$5 each for two people$",
            "$x\ny$",
            "\\[x\n\ny\\]",
            r"\(x",
            r"\(\)",
            "$$",
        ),
        *(
            r"\(\frac{1}{\)",
            r"\(\undefinedcommand\)",
            r"\boxed{4 blue shoe boxes}",
            r"\boxed{$5}",
            r"\(\href{http://a}{b}\)",
        ),
        *(r"\(\hspace{9999em}x\)", r"\(\def\a{\a\a}\a\)", f"\\({'x' * MAX_CHARS}x\\)"),
    ],
)
def test_money_and_broken_or_unknown_latex_stay_as_typed(text: str) -> None:
    assert found(text) == []


@pytest.mark.parametrize(
    "text", ["2**3**4", "(2)**3**(4)", "** a **", "**a\nb**", "*a*", "2*3*4", "# x", "-3"]
)
def test_products_and_powers_are_no_markdown(text: str) -> None:
    assert found(text) == []


def test_bold_headings_and_items_hold_formulas() -> None:
    text = "## Step **1**\n- is $x$,\n  2) **\\(y\\)**\n**b**"
    assert found(text) == [
        *(("## Step **1**", HEADING), ("**1**", BOLD), ("- is $x$,", ITEM), ("$x$", 0)),
        *(("  2) **\\(y\\)**", ITEM), ("**\\(y\\)**", BOLD), ("\\(y\\)", 0), ("**b**", BOLD)),
    ]


def test_offsets_count_as_javascript_does() -> None:
    assert spans("\U0001f600\U0001f600 $x$", Formulas()) == [5, 8, 0]


def test_equal_formulas_are_kept_once() -> None:
    formulas = Formulas()
    assert [spans(text, formulas)[2] for text in ("$x$", "$y$", r"\(x\)", r"\[x\]")] == [0, 1, 0, 2]
    assert len(formulas.trees) == 3


@pytest.mark.parametrize(
    "opening", ["{", "\\sqrt", "x^{", "\\left(", "\\frac{", "\\mathbf", "\\begin{matrix}"]
)
def test_deep_formulas_neither_crash_nor_are_rendered(opening: str) -> None:
    deep = opening * (MAX_CHARS // len(opening))
    assert found(f"\\({deep}\\)") == []


def test_elements_and_styles_outside_the_list_are_never_in_a_tree() -> None:
    formulas = Formulas()
    assert formulas.number(r"\text{<script>alert(1)</script>}", display=False) == 0
    assert formulas.trees[0][2:] == [["mtext", {}, "<script>alert(1)</script>"]]
    assert formulas.number(r"\color{red}x", display=False) == 1
    assert formulas.trees[1][2][1] == {"style": "color:#FF0000;"}


@pytest.mark.shared_data
@pytest.mark.skipif(SHARED_DATA is None, reason="real text is not in this checkout")
def test_nearly_all_formulas_of_real_solutions_are_rendered() -> None:
    assert SHARED_DATA is not None
    formulas = Formulas()
    for record in map(json.loads, (SHARED_DATA / "math_best_of_8.jsonl").read_text().splitlines()):
        for text in (record["problem"], *record["steps"]):
            spans(text, formulas)
    assert len(formulas.trees) > 2700
    assert sum(number is None for number in formulas._numbers.values()) < 10
