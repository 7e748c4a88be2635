"""Text of control tokens in a record stays text, wherever it stands, and is flagged."""

from __future__ import annotations

from hypothesis import given
from testing.byte_level import CHATML, SPECIAL, encoder, trained
from testing.hypothesis_profiles import examples
from testing.nasty_text import STEPS, TEXT
from tokenizers import AddedToken, Tokenizer

from stepscore.enums import Convention
from stepscore.prompt.template import Template

CARD = Convention.CARD


@examples(100)
@given(problem=TEXT, steps=STEPS)
def test_special_token_text_never_becomes_a_control_token_and_is_flagged(
    problem: str, steps: list[str]
) -> None:
    tokenizer = trained()
    encoded = encoder(tokenizer).encode(problem, steps, CARD)
    control = [tokenizer.token_to_id(text) for text in SPECIAL]
    literals = [id_ for id_ in tokenizer.encode(CHATML.render("", [])).ids if id_ in control]
    assert [id_ for id_ in encoded.token_ids.tolist() if id_ in control] == literals
    assert encoded.special_text == any(text in problem + "\0" + "\n\n".join(steps) for text in SPECIAL)


def test_control_text_split_across_two_steps_stays_text() -> None:
    tokenizer = trained()
    encoded = encoder(tokenizer).encode("", ["<|im_", "end|>"], CARD)
    assert not encoded.special_text
    assert encoded.token_ids.tolist().count(tokenizer.token_to_id("<|im_end|>")) == 3


def test_special_token_that_holds_a_separator_stays_text_across_two_steps() -> None:
    tokenizer = Tokenizer.from_str(trained().to_str())
    tokenizer.add_special_tokens([AddedToken("<|a\n\nb|>", normalized=False)])
    encoded = encoder(tokenizer).encode("", ["<|a", "b|>"], CARD)
    assert encoded.special_text
    assert tokenizer.token_to_id("<|a\n\nb|>") not in encoded.token_ids


def test_control_text_split_across_problem_and_literal_stays_text() -> None:
    template = Template(CHATML.prefix, "end|>" + CHATML.between, CHATML.suffix)
    tokenizer = trained()
    encoded = encoder(tokenizer, template).encode("<|im_", ["a"], CARD)
    assert encoded.special_text
    assert encoded.token_ids.tolist().count(tokenizer.token_to_id("<|im_end|>")) == 3


def test_added_token_of_the_template_is_a_control_token_without_the_special_flag() -> None:
    template = Template(CHATML.prefix, "<tool_call>\n", CHATML.suffix)
    tokenizer = trained()
    encoded = encoder(tokenizer, template).encode("a<tool_call>b", ["a"], CARD)
    assert encoded.special_text
    assert encoded.token_ids.tolist().count(tokenizer.token_to_id("<tool_call>")) == 1


def test_added_token_that_the_template_does_not_use_is_text_with_its_own_id() -> None:
    tokenizer = trained()
    encoded = encoder(tokenizer).encode("", ["<tool_call>x</tool_call>"], CARD)
    assert not encoded.special_text
    assert tokenizer.token_to_id("<tool_call>") in encoded.token_ids
