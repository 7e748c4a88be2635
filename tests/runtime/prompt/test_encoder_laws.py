"""Token ids and step ends of nasty text: those of real re-tokenization of every prefix."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given
from msgspec import structs
from testing.byte_level import (
    CHATML,
    CROSSING,
    FLAGGED,
    GPT2,
    LINES,
    LLAMA3,
    OTHER,
    PROVED,
    SMOLLM2,
    Rules,
    bytes_and,
    encoder,
    trained,
)
from testing.hypothesis_profiles import examples
from testing.nasty_text import STEPS, TEXT
from testing.retokenized import Reference
from tokenizers import Tokenizer

from stepscore.enums import Convention
from stepscore.errors import InvalidRecord
from stepscore.prompt.template import Strip, Template, TextRule

CARD, EXACT = Convention.CARD, Convention.EXACT

SUFFIX_TEXT = Template(CHATML.prefix, CHATML.between, " END<|im_end|>\n")
LEADING_SPACE = Template("\n \n" + CHATML.prefix, CHATML.between, CHATML.suffix)
BEGUN_ANSWER = Template(CHATML.prefix, CHATML.between + "Answer: ", CHATML.suffix + "<|endoftext|>")
RULES = pytest.mark.parametrize("rules", [pytest.param(rules, id=name) for name, rules in PROVED.items()])
STRIPPED = TextRule(Strip.WHITE_SPACE, Strip.WHITE_SPACE)
STRIPPING = structs.replace(CHATML, problem=STRIPPED, response=STRIPPED)
STRIPPED_SUFFIX_TEXT = structs.replace(SUFFIX_TEXT, response=STRIPPED)
LINE_FEEDS = structs.replace(
    CHATML,
    problem=TextRule(right=Strip.LINE_FEEDS),
    response=TextRule(Strip.LINE_FEEDS, Strip.LINE_FEEDS),
)


def no_private_use(text: str) -> bool:
    return not re.search("[\ue000-\ue002]", text)


@pytest.mark.parametrize(
    ("tokenizer", "template"),
    [
        pytest.param(trained(), CHATML, id="trained"),
        pytest.param(trained(added=FLAGGED), CHATML, id="flagged added tokens"),
        pytest.param(trained(added=(CROSSING,)), CHATML, id="added token across a separator"),
        pytest.param(trained(rules=OTHER), CHATML, id="another pre-tokeniser"),
        pytest.param(trained(rules=LLAMA3), CHATML, id="llama3"),
        pytest.param(trained(rules=LLAMA3), STRIPPING, id="llama3 stripped"),
        pytest.param(trained(rules=SMOLLM2), CHATML, id="smollm2"),
        pytest.param(trained(added=FLAGGED, rules=SMOLLM2), STRIPPING, id="smollm2 stripped, flagged"),
        pytest.param(trained(rules=GPT2), LINE_FEEDS, id="gpt2 stripped of line feeds"),
        pytest.param(trained(), LINE_FEEDS, id="stripped of line feeds"),
        pytest.param(trained(), STRIPPING, id="stripped"),
        pytest.param(trained(rules=OTHER), STRIPPING, id="another pre-tokeniser, stripped"),
        pytest.param(trained(), STRIPPED_SUFFIX_TEXT, id="stripped, suffix begins with text"),
        pytest.param(bytes_and(LINES), CHATML, id="bytes"),
        pytest.param(trained(), SUFFIX_TEXT, id="suffix begins with text"),
        pytest.param(trained(), LEADING_SPACE, id="prefix begins with white space"),
        pytest.param(trained(), BEGUN_ANSWER, id="begun answer"),
    ],
)
@examples(60)
@given(problem=TEXT.filter(no_private_use), steps=STEPS.filter(lambda steps: no_private_use("".join(steps))))
def test_ids_and_card_indices_are_those_of_real_prefix_retokenisation(
    tokenizer: Tokenizer, template: Template, problem: str, steps: list[str]
) -> None:
    reference = Reference(tokenizer, template)
    expected = reference.render_ids(problem, steps)
    ends = reference.card(problem, steps)
    try:
        encoded = encoder(tokenizer, template).encode(problem, steps, CARD)
    except InvalidRecord:
        assert max(ends) > len(expected) - 2  # where the card's own gather fails
        return
    assert encoded.token_ids.tolist() == expected
    assert encoded.step_ends.tolist() == ends


@examples(100)
@given(problem=TEXT, steps=STEPS)
def test_exact_reads_at_the_token_of_the_separators_last_character(problem: str, steps: list[str]) -> None:
    tokenizer = trained(added=FLAGGED)
    encoded = encoder(tokenizer).encode(problem, steps, EXACT)
    assert encoded.token_ids[encoded.step_ends[-1] + 1] == tokenizer.token_to_id("<|im_end|>")
    assert (np.diff(encoded.step_ends) >= 0).all()
    for end in encoded.step_ends[:-1]:
        token = tokenizer.decode([int(encoded.token_ids[end + 1])], skip_special_tokens=False)
        assert "\n" in token or token in ("<left>", "<right>")  # flagged so that they swallow the separator


@RULES
@examples(30)
@given(problem=TEXT, steps=STEPS, others=STEPS)
def test_exact_sees_nothing_of_later_steps(
    rules: Rules, problem: str, steps: list[str], others: list[str]
) -> None:
    tokenizer = encoder(trained(rules=rules), STRIPPING)
    one = tokenizer.encode(problem, [*steps, "Then"], EXACT)
    other = tokenizer.encode(problem, [*steps, "Or " + others[0], *others[1:]], EXACT)
    k, end = len(steps), one.step_ends[len(steps) - 1]
    np.testing.assert_array_equal(one.step_ends[:k], other.step_ends[:k])
    np.testing.assert_array_equal(one.token_ids[: end + 2], other.token_ids[: end + 2])


@RULES
@examples(30)
@given(problem=TEXT, steps=STEPS)
def test_an_unfinished_answer_is_read_where_it_will_be_when_it_goes_on(
    rules: Rules, problem: str, steps: list[str]
) -> None:
    tokenizer = encoder(trained(rules=rules), STRIPPING)
    now = tokenizer.encode(problem, steps, EXACT, unfinished=True)
    later = tokenizer.encode(problem, [*steps, "Then"], EXACT)
    np.testing.assert_array_equal(now.step_ends, later.step_ends[:-1])
    np.testing.assert_array_equal(now.token_ids, later.token_ids[: len(now.token_ids)])


@examples(100)
@given(problem=TEXT, steps=STEPS)
def test_the_texts_of_the_tokens_are_the_render(problem: str, steps: list[str]) -> None:
    tokenizer = trained()
    ids = encoder(tokenizer).encode(problem, steps, CARD).token_ids.tolist()
    texts = encoder(tokenizer).texts(ids)
    assert len(texts) == len(ids)
    assert "".join(texts) == tokenizer.decode(ids, skip_special_tokens=False)


@examples(100)
@given(problem=TEXT, steps=STEPS)
def test_step_ends_lie_in_the_summed_logprobs(problem: str, steps: list[str]) -> None:
    for convention in Convention:
        encoded = encoder(trained()).encode(problem, steps, convention)
        start = encoded.first_summed
        assert start == (0 if convention is CARD else encoded.response_start - 1)
        assert encoded.step_ends.min() >= start
        assert encoded.step_ends.max() <= len(encoded.token_ids) - 2
