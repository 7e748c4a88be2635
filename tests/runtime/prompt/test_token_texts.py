"""The texts of tokens, joined, are the text, whatever bytes a token holds."""

from __future__ import annotations

import unicodedata
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from testing.byte_level import CROSSING, OTHER, bytes_and, nasty_text, trained
from tokenizers import Tokenizer
from tokenizers.pre_tokenizers import ByteLevel

from stepscore.prompt.token_texts import TokenTexts, token_bytes

REPLACEMENTS = "\ufffd" * 2000
TOKENIZERS = [bytes_and(), trained(), trained(added=(CROSSING,)), trained(rules=OTHER)]


def texts(tokenizer: Tokenizer, text: str) -> list[str]:
    return TokenTexts(tokenizer).of(tokenizer.encode(text).ids)


@pytest.mark.parametrize("tokenizer", TOKENIZERS, ids=["bytes", "trained", "added", "other"])
@given(st.integers(0, 2**32), st.text(max_size=20))
def test_joined_texts_are_the_text(tokenizer: Tokenizer, seed: int, more: str) -> None:
    text = nasty_text(Random(seed)) + more
    found = texts(tokenizer, text)
    assert len(found) == len(tokenizer.encode(text))
    joined = "".join(found)  # each part between added tokens is in NFC, the whole may not be
    assert unicodedata.normalize("NFC", joined) == unicodedata.normalize("NFC", text)


def test_a_character_comes_with_its_last_token() -> None:
    assert texts(bytes_and(), "a😀b") == ["a", "", "", "", "😀", "b"]
    assert texts(bytes_and([("n", "Ã")]), "nÀ") == ["n", "À"]  # the first token holds the first byte of two


def test_replacement_characters_of_a_text_are_text_like_any_other() -> None:
    """A decoder that waits for the end of a character waits for ever behind these, in quadratic time."""
    found = texts(bytes_and(), "a" + REPLACEMENTS)
    assert "".join(found) == "a" + REPLACEMENTS
    assert found[3::3] == ["\ufffd"] * 2000


@pytest.mark.parametrize("ids", [[0xF0], [0xF0, 0x9F], [0xF0, 0x28], [0x80] * 3])
def test_bytes_that_are_no_text_are_shown_and_kept_from_the_next_token(ids: list[int]) -> None:
    tokenizer = bytes_and([])
    alphabet = {token_bytes(spelled)[0]: spelled for spelled in ByteLevel.alphabet()}
    tokens = [tokenizer.token_to_id(alphabet[byte]) for byte in ids]
    end = tokenizer.token_to_id("<|im_end|>")
    found = TokenTexts(tokenizer).of([*tokens, end])
    assert "".join(found) == bytes(ids).decode(errors="replace") + "<|im_end|>"


def test_every_byte_has_one_spelling() -> None:
    assert sorted(token_bytes(spelled) for spelled in ByteLevel.alphabet()) == [
        bytes([b]) for b in range(256)
    ]


def test_no_token_has_no_text() -> None:
    assert TokenTexts(trained()).of([]) == []
