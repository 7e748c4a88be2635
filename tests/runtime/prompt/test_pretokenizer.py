"""What is proved of the pre-tokenizers of Qwen2, Llama 3 and SmolLM2 holds for whole encodings."""

from __future__ import annotations

import json
from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st
from testing.byte_level import GPT2, LLAMA3, OTHER, PROVED, QWEN2, SMOLLM2, Rules, bytes_and, trained
from testing.hypothesis_profiles import examples
from testing.nasty_text import TEXT
from tokenizers import Tokenizer

from stepscore.prompt.pretokenizer import UNPROVED, PreTokenizer, pre_tokenizer

RULES = pytest.mark.parametrize("rules", [pytest.param(rules, id=name) for name, rules in PROVED.items()])
DIGITS_AND_SPACES = st.text("12a.- \n\r\t\u0665\xa0\x1c\x85'", max_size=30)
ANY = TEXT | DIGITS_AND_SPACES


@cache
def split(rules: Rules) -> Tokenizer:
    return bytes_and(rules=rules)


@cache
def proved(rules: Rules) -> PreTokenizer:
    return pre_tokenizer(bytes_and(rules=rules).to_str())


def pre_tokens(tokenizer: Tokenizer, text: str) -> list[tuple[int, int]]:
    return [span for _, span in tokenizer.pre_tokenizer.pre_tokenize_str(text)]


@RULES
@examples(40)
@given(text=ANY, data=st.data())
def test_a_cut_changes_no_pre_token_before_the_last_character(
    rules: Rules, text: str, data: st.DataObject
) -> None:
    cuts = [at for at in range(1, len(text)) if text[at] == "\n" or not text[at - 1].isspace()]
    if not cuts:
        return
    cut, tokenizer = data.draw(st.sampled_from(cuts)), split(rules)
    assert proved(rules).is_local
    whole, part = pre_tokens(tokenizer, text), pre_tokens(tokenizer, text[:cut])
    before = [span for span in whole if span[1] <= cut - 1]
    last = next(start for start, end in whole if start <= cut - 1 < end)
    assert part[: len(before)] == before
    assert [(start - last, end - last) for start, end in part[len(before) :]] == pre_tokens(
        tokenizer, text[last:cut]
    )


@RULES
@examples(40)
@given(text=ANY)
def test_parts_of_a_text_have_the_ids_of_the_whole(rules: Rules, text: str) -> None:
    cut, tokenizer = proved(rules).cut, trained(rules=rules)
    assert cut is not None
    ends = [match.start() for match in cut.finditer(text)]
    parts = [text[a:b] for a, b in zip([0, *ends], [*ends, len(text)], strict=True)]
    ids = [token for part in parts for token in tokenizer.encode(part).ids]
    assert ids == tokenizer.encode(text).ids


@RULES
@examples(40)
@given(text=ANY, more=st.characters(exclude_categories=["Cs", "M"]))
def test_a_separator_is_the_same_before_any_text_unless_the_pre_tokenizer_looks_past_it(
    rules: Rules, text: str, more: str
) -> None:
    if more.isspace():
        return
    tokenizer, size = split(rules), len(text) + 2
    alone = pre_tokens(tokenizer, text + "\n\n")
    followed = [span for span in pre_tokens(tokenizer, text + "\n\n" + more) if span[1] <= size]
    if not proved(rules).looks_past_separator:
        assert followed == alone
    elif not (more.isnumeric() and rules.single_digits):
        with_letter = [span for span in pre_tokens(tokenizer, text + "\n\na") if span[1] <= size]
        assert followed == with_letter


def test_two_line_feeds_are_split_before_a_letter_by_the_pre_tokenizers_that_look_past_them() -> None:
    for rules, count in ((SMOLLM2, 2), (GPT2, 2), (LLAMA3, 1), (QWEN2, 1)):
        spans = pre_tokens(bytes_and(rules=rules), "x\n\nThen")
        assert len(spans) - 2 == count
        assert proved(rules).looks_past_separator == (count == 2)


def test_digits_of_two_texts_are_grouped_from_where_the_number_begins() -> None:
    assert pre_tokens(bytes_and(rules=LLAMA3), "12345") == [(0, 3), (3, 5)]
    assert pre_tokens(bytes_and(rules=LLAMA3), "12" + "34") != [(0, 2), (2, 4)]
    assert pre_tokens(bytes_and(rules=SMOLLM2), "123") == [(0, 1), (1, 2), (2, 3)]


@pytest.mark.parametrize(
    "change",
    [
        {"normalizer": {"type": "NFKC"}},
        {"pre_tokenizer": {"type": "Whitespace"}},
        {"pre_tokenizer": None},
        {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True, "use_regex": True}},
        {"pre_tokenizer": {"type": "Sequence", "pretokenizers": []}},
    ],
)
def test_nothing_is_proved_of_other_rules(change: dict[str, object]) -> None:
    parts = json.loads(bytes_and().to_str())
    assert pre_tokenizer(json.dumps(parts | change)) is UNPROVED
    assert pre_tokenizer(bytes_and(rules=OTHER).to_str()) is UNPROVED


def test_gpt2s_file_without_its_default_is_recognized() -> None:
    parts = json.loads(bytes_and(rules=GPT2).to_str())
    parts["pre_tokenizer"] = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    assert pre_tokenizer(json.dumps(parts)) is proved(GPT2)
