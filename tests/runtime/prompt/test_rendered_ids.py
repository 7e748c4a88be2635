"""Prompts that are written out: token ids as transformers gives them, control tokens matched."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from testing.byte_level import CHATML, FRAGMENTS, SPECIAL, trained
from testing.shared_data import SHARED_DATA
from tokenizers import Tokenizer

from stepscore.enums import Convention
from stepscore.errors import InvalidRecord, TooLong
from stepscore.prompt.encoder import PromptEncoder

TOKENIZER = trained()
ENCODER = PromptEncoder(TOKENIZER.to_str(), CHATML, max_tokens=1000)


@given(st.lists(st.sampled_from([*FRAGMENTS, *SPECIAL])).map("".join))
def test_ids_are_those_of_the_tokenizer_with_its_control_tokens(text: str) -> None:
    assert ENCODER.rendered_ids(text) == TOKENIZER.encode(text, add_special_tokens=False).ids


def test_a_render_has_the_ids_of_its_record() -> None:
    render = CHATML.render("1 + 1?", ["One.", "Two."])
    encoded = ENCODER.encode("1 + 1?", ["One.", "Two."], Convention.CARD)
    assert ENCODER.rendered_ids(render) == encoded.token_ids.tolist()


def test_control_tokens_are_found_in_their_order() -> None:
    assert ENCODER.control_tokens("a<|im_end|>b<|im_start|>") == ["<|im_end|>", "<|im_start|>"]
    assert ENCODER.control_tokens("a<|im_|>") == []


def test_a_prompt_that_no_tokenizer_takes_is_an_error() -> None:
    with pytest.raises(InvalidRecord, match="lone surrogate at character 1"):
        ENCODER.rendered_ids("a\ud800")
    with pytest.raises(TooLong):
        ENCODER.rendered_ids("a " * 10_000)


def test_control_tokens_do_not_make_a_prompt_too_long() -> None:
    assert len(ENCODER.rendered_ids("<|im_end|>" * 900)) == 900


@pytest.mark.shared_data
@pytest.mark.skipif(SHARED_DATA is None, reason="no shared data")
def test_a_real_tokenizer_gives_the_same_ids() -> None:
    assert SHARED_DATA is not None
    real = Tokenizer.from_file(str(SHARED_DATA / "qwen2.5-math-tokenizer" / "tokenizer.json"))
    encoder = PromptEncoder(real.to_str(), CHATML, max_tokens=4096)
    for text in (
        "<|im_start|>user\nWhat is 2+2?<|im_end|>\n",
        "<tool_call> x<|endoftext|>\n\n ",
        "Ａé\u0301 \n\n",
    ):
        assert encoder.rendered_ids(text) == real.encode(text, add_special_tokens=False).ids
