"""Templates that strip problem and response, or that look for a tag in them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import json, structs
from testing.byte_level import CHATML, LINES, bytes_and, encoder, trained
from testing.hypothesis_profiles import examples
from testing.nasty_text import STEPS, TEXT

from stepscore.enums import Convention
from stepscore.errors import InvalidRecord
from stepscore.prompt.template import Strip, Template, TextRule

STRIPPED = TextRule(Strip.WHITE_SPACE, Strip.WHITE_SPACE)
STRIPPING = structs.replace(CHATML, problem=STRIPPED, response=STRIPPED)
SEARCHING = structs.replace(
    CHATML, problem=TextRule(rejected=("<a>",)), response=TextRule(rejected=("</think>",))
)
BLANK = st.text(" \n\t\u2003", max_size=3)


@examples(40)
@given(problem=TEXT, steps=STEPS, blanks=st.tuples(BLANK, BLANK, BLANK, BLANK))
def test_white_space_at_the_ends_changes_nothing(
    problem: str, steps: list[str], blanks: tuple[str, str, str, str]
) -> None:
    stripping, (a, b, c, d) = encoder(trained(), STRIPPING), blanks
    spaced = [*steps]
    spaced[0] = c + spaced[0]
    spaced[-1] += d
    for convention in Convention:
        one = stripping.encode(problem, steps, convention)
        other = stripping.encode(a + problem + b, spaced, convention)
        np.testing.assert_array_equal(one.token_ids, other.token_ids)
        np.testing.assert_array_equal(one.step_ends, other.step_ends)
    np.testing.assert_array_equal(stripping.prompt_ids(a + problem + b), one.token_ids[: one.response_start])


def test_white_space_at_the_end_of_an_inner_step_moves_the_cards_index_alone() -> None:
    tokenizer = bytes_and(LINES)
    ends = {
        template: [
            (encoded.step_ends + 1 - encoded.response_start).tolist()
            for convention in (Convention.CARD, Convention.EXACT)
            for encoded in [encoder(tokenizer, template).encode("?", ["a  ", "bbb"], convention)]
        ]
        for template in (CHATML, STRIPPING)
    }
    # "a" " " " " "\n\n" "b" "b" "b": the card counts "a" with its spaces, or "a" alone, and one more.
    assert ends == {CHATML: [[4, 7], [3, 7]], STRIPPING: [[2, 7], [3, 7]]}


def test_the_end_of_an_unfinished_response_is_not_stripped() -> None:
    encoded = encoder(bytes_and(LINES), STRIPPING).encode("?", ["a "], Convention.EXACT, unfinished=True)
    assert bytes_and(LINES).decode(encoded.token_ids[encoded.response_start :].tolist()) == "a \n\n"


def test_text_with_a_tag_that_the_template_looks_for_is_rejected() -> None:
    searching = encoder(trained(), SEARCHING)
    searching.encode("</think>", ["<a>"], Convention.CARD)
    with pytest.raises(
        InvalidRecord, match=r"steps\[1\] contains '</think>', which the pair's chat template"
    ):
        searching.encode("1", ["a", "b</think>"], Convention.CARD)
    for encode in (searching.prompt_ids, lambda text: searching.encode(text, ["a"], Convention.CARD)):
        with pytest.raises(InvalidRecord, match="problem contains '<a>'"):
            encode("1<a>")


def test_a_template_without_rules_is_stored_as_three_literals() -> None:
    assert json.decode(json.encode(CHATML)).keys() == {"prefix", "between", "suffix"}
    for template in (CHATML, STRIPPING, SEARCHING):
        assert json.decode(json.encode(template), type=Template) == template
