"""Records, tokenizers and templates that the encoder rejects, and how it names them."""

from __future__ import annotations

import pytest
from testing.byte_level import CHATML, bytes_and, encoder
from tokenizers import AddedToken

from stepscore.enums import Convention
from stepscore.errors import InvalidRecord, ManifestInvalid, NoSteps, TooLong
from stepscore.prompt.template import Template

CARD, EXACT = Convention.CARD, Convention.EXACT


def test_end_before_the_response_is_refused() -> None:
    # The literal's "ab" is two tokens alone, but "abc" is one: h lies behind the whole response.
    template = Template("<|im_start|>", "<|im_start|>ab", "<|im_end|>")
    merges = [("b", "c"), ("a", "bc")]
    with pytest.raises(InvalidRecord, match="outside the"):
        encoder(bytes_and(merges), template).encode("?", ["c"], EXACT)


def test_no_steps_is_refused() -> None:
    with pytest.raises(NoSteps):
        encoder(bytes_and()).encode("?", [], CARD)


@pytest.mark.parametrize(
    ("step", "word"), [("", "empty"), (" \n\t", "white space"), ("\u2003\x85", "white space")]
)
def test_blank_step_is_refused_by_its_index(step: str, word: str) -> None:
    with pytest.raises(InvalidRecord, match=rf"steps\[1\] is {word}"):
        encoder(bytes_and()).encode("?", ["a", step, "b"], CARD)


@pytest.mark.parametrize(
    ("problem", "steps", "where"),
    [("a\ud800", ["a"], "problem .* character 1"), ("", ["a", "ab\udfff"], r"steps\[1\] .* character 2")],
)
def test_lone_surrogate_is_refused_by_its_place(problem: str, steps: list[str], where: str) -> None:
    with pytest.raises(InvalidRecord, match=where):
        encoder(bytes_and()).encode(problem, steps, CARD)


def test_too_many_tokens_are_refused_never_truncated() -> None:
    tokenizer = bytes_and()
    tokenizer.enable_truncation(8)
    tokenizer.enable_padding(length=512)
    length = len(encoder(tokenizer).encode("?", ["a" * 100], CARD).token_ids)
    assert length == len(encoder(tokenizer, max_tokens=length).encode("?", ["a" * 100], CARD).token_ids)
    with pytest.raises(TooLong, match=f"{length} tokens exceed the context length of {length - 1}"):
        encoder(tokenizer, max_tokens=length - 1).encode("?", ["a" * 100], CARD)


@pytest.mark.parametrize("name", ["prefix", "between", "suffix"])
def test_literal_without_a_control_token_is_refused(name: str) -> None:
    literals = {"prefix": CHATML.prefix, "between": CHATML.between, "suffix": CHATML.suffix, name: "text\n"}
    with pytest.raises(ManifestInvalid, match=f"{name} contains no control token"):
        encoder(bytes_and(), Template(**literals))


def test_control_token_that_matches_by_its_context_is_refused() -> None:
    tokenizer = bytes_and()
    tokenizer.add_special_tokens([AddedToken("<end>", rstrip=True, special=True)])
    with pytest.raises(ManifestInvalid, match="'<end>' has lstrip, rstrip, single_word or normalized set"):
        encoder(tokenizer, Template(CHATML.prefix, CHATML.between, "<end>\n"))
