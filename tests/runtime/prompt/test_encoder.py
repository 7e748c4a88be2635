"""Token ids and step ends of a record: three conventions, by hand, and how much work they take."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from random import Random

import numpy as np
import pytest
from testing.byte_level import (
    CHATML,
    FLAGGED,
    LINES,
    bytes_and,
    encoder,
    nasty_steps,
    nasty_text,
    trained,
)
from testing.retokenized import Reference
from testing.shared_data import SHARED_DATA
from tokenizers import Encoding, Tokenizer, processors

from stepscore.enums import Convention
from stepscore.errors import InvalidRecord
from stepscore.prompt.encoder import EncodedPrompt, PromptEncoder
from stepscore.prompt.template import Template

CARD, RESPONSE, EXACT = Convention.CARD, Convention.RESPONSE, Convention.EXACT


def tokens_before(encoded: EncodedPrompt) -> list[int]:
    """The step ends counted from the first response token: position of the scored token minus h."""
    return (encoded.step_ends + 1 - encoded.response_start).tolist()


# The three conventions, by hand


def test_card_reads_two_past_a_separator_that_merged_with_the_punctuation() -> None:
    # "a" ".\n\n" "b" "b" "b" | "a" "." + one: the second token of the next step; <|im_end|> for the last
    assert tokens_before(encoder(bytes_and(LINES)).encode("?", ["a.", "bbb"], CARD)) == [3, 5]


def test_card_reads_one_past_a_separator_that_stands_alone() -> None:
    # "a" "\n\n" "b" "b" "b" | "a" + one
    assert tokens_before(encoder(bytes_and(LINES)).encode("?", ["a", "bbb"], CARD)) == [2, 5]


def test_response_reads_where_card_reads() -> None:
    tokenizer = encoder(bytes_and(LINES))
    card, response = (tokenizer.encode("?", ["a.", "bbb"], convention) for convention in (CARD, RESPONSE))
    np.testing.assert_array_equal(card.step_ends, response.step_ends)


def test_exact_reads_at_the_token_that_ends_the_separator_and_at_the_turns_end() -> None:
    tokenizer = encoder(bytes_and(LINES))
    assert tokens_before(tokenizer.encode("?", ["a.", "bbb"], EXACT)) == [1, 5]
    assert tokens_before(tokenizer.encode("?", ["a", "bbb"], EXACT)) == [1, 5]
    assert tokens_before(encoder(bytes_and()).encode("?", ["a", "bbb"], EXACT)) == [2, 6]  # "\n", "\n"


def test_response_starts_behind_the_between_literal() -> None:
    tokenizer = bytes_and(LINES)
    encoded = encoder(tokenizer).encode("?", ["a."], CARD)
    between = CHATML.prefix + "?" + CHATML.between
    assert encoded.response_start == len(tokenizer.encode(between))
    assert tokenizer.decode(
        encoded.token_ids[encoded.response_start :].tolist(), skip_special_tokens=False
    ) == ("a.<|im_end|>\n")


def test_card_ends_are_equal_if_the_last_step_is_one_token_after_a_merge() -> None:
    assert tokens_before(encoder(bytes_and(LINES)).encode("?", ["a.", "b"], CARD)) == [3, 3]


def test_card_ends_decrease_if_a_two_token_separator_merges() -> None:
    tokenizer = bytes_and([(".", "Ċ"), (".Ċ", "Ċ")])  # ".\n\n" is one token, "\n\n" is two
    encoded = encoder(tokenizer).encode("?", ["a.", "b"], CARD)
    assert tokens_before(encoded) == [4, 3]
    assert encoded.step_ends.tolist() == Reference(tokenizer).card("?", ["a.", "b"])


def test_card_index_past_the_last_logprob_is_refused_never_wrapped() -> None:
    merges = [(".", "Ċ"), (".Ċ", "Ċ")]
    template = Template(CHATML.prefix, CHATML.between, "<|im_end|>")  # nothing behind the turn's end
    tokenizer = encoder(bytes_and(merges), template)
    with pytest.raises(InvalidRecord, match=r"steps\[0\] ends at log-prob"):
        tokenizer.encode("?", ["a.", "b"], CARD)
    assert tokens_before(tokenizer.encode("?", ["a.", "b"], EXACT)) == [1, 3]


@pytest.mark.shared_data
@pytest.mark.skipif(SHARED_DATA is None, reason="no shared data")
def test_golden_values_of_the_card_with_the_real_tokenizer() -> None:
    assert SHARED_DATA is not None
    system = "Please reason step by step, and put your final answer within \\boxed{}."
    template = Template(
        prefix=f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n",
        between=CHATML.between,
        suffix=CHATML.suffix,
    )
    text = (SHARED_DATA / "qwen2.5-math-tokenizer" / "tokenizer.json").read_text("utf-8")
    encoded = PromptEncoder(text, template, max_tokens=4096).encode("111", ["111", "222"], CARD)
    assert (len(encoded.token_ids), encoded.response_start) == (40, 31)
    assert encoded.step_ends.tolist() == [34, 37]


# What does not matter


def test_post_processor_that_trims_offsets_changes_nothing() -> None:
    random = Random(1)
    tokenizer = Tokenizer.from_str(trained().to_str())
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    for _ in range(100):
        problem, steps = nasty_text(random), nasty_steps(random)
        for convention in Convention:
            one = encoder(trained()).encode(problem, steps, convention)
            other = encoder(tokenizer).encode(problem, steps, convention)
            np.testing.assert_array_equal(one.step_ends, other.step_ends)


def test_threads_share_an_encoder() -> None:
    random = Random(2)
    shared = encoder(trained(added=FLAGGED))
    records = [(nasty_text(random), nasty_steps(random)) for _ in range(200)]

    def ends(record: tuple[str, list[str]]) -> list[int]:
        return shared.encode(*record, CARD).step_ends.tolist()

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(ends, records)) == [ends(record) for record in records]


class Counting(PromptEncoder):
    """Counts what goes to the tokenizer."""

    def __init__(self, *args: object, **options: object) -> None:
        self.calls = self.characters = 0
        super().__init__(*args, **options)  # type: ignore[arg-type]
        self.calls = self.characters = 0

    def _encode(self, text: str) -> Encoding:
        self.calls += 1
        self.characters += len(text)
        return super()._encode(text)


@pytest.mark.slow
@pytest.mark.parametrize("convention", Convention)
@pytest.mark.parametrize(
    "ending", [".", ")", " ", " \n", "é", "e\u0301", "\\]", "<tool_call>", "</tool_call> "]
)
def test_work_is_linear_in_thousands_of_steps(convention: Convention, ending: str) -> None:
    steps = [f"step {k} is done{ending}" for k in range(2_000)]
    counting = Counting(trained().to_str(), CHATML, max_tokens=10**6)
    encoded = counting.encode("?", steps, convention)
    assert all(a < b for a, b in pairwise(encoded.step_ends.tolist()[:-1]))
    assert counting.calls <= 2 + len(steps)
    assert counting.characters <= 2 * len("\n\n".join(steps))


def test_the_same_line_end_is_encoded_once() -> None:
    counting = Counting(bytes_and(LINES).to_str(), CHATML, max_tokens=10**6)
    counting.encode("?", [f"{k} is done." for k in range(1000)], CARD)
    assert counting.calls == 3  # problem, response, "."
