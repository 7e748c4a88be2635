"""Token ids and step ends of a record: three conventions, and text that merges tokens across separators."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from testing.byte_level import (
    CHATML,
    CROSSING,
    FLAGGED,
    FRAGMENTS,
    OTHER_PATTERN,
    SPECIAL,
    bytes_and,
    nasty_steps,
    nasty_text,
    trained,
    without_special,
)
from testing.hypothesis_profiles import examples
from testing.shared_data import SHARED_DATA
from tokenizers import AddedToken, Encoding, Tokenizer, processors

from stepscore.enums import Convention
from stepscore.errors import InvalidRecord, ManifestInvalid, NoSteps, TooLong
from stepscore.prompt.encoder import EncodedPrompt, PromptEncoder
from stepscore.prompt.template import Template

CARD, RESPONSE, EXACT = Convention.CARD, Convention.RESPONSE, Convention.EXACT
LINES = [("Ċ", "Ċ"), (".", "ĊĊ")]  # as in Qwen2: "\n\n" is a token, ".\n\n" is a token


def encoder(tokenizer: Tokenizer, template: Template = CHATML, max_tokens: int = 100_000) -> PromptEncoder:
    return _encoder(tokenizer.to_str(), template, max_tokens)


@cache
def _encoder(tokenizer_json: str, template: Template, max_tokens: int) -> PromptEncoder:
    return PromptEncoder(tokenizer_json, template, max_tokens=max_tokens)


class Reference:
    """The rule read literally: real re-tokenisation, control tokens only where the literals hold them."""

    def __init__(self, tokenizer: Tokenizer, template: Template = CHATML) -> None:
        self.plain = without_special(tokenizer)
        # Each control token of a literal becomes a private-use character, which no text here holds.
        self.control = {chr(0xE000 + at): tokenizer.token_to_id(text) for at, text in enumerate(SPECIAL)}
        literals = [template.prefix, template.between, template.suffix]
        for mark, text in zip(self.control, SPECIAL, strict=True):
            literals = [literal.replace(text, mark) for literal in literals]
        self.template = Template(*literals)

    def ids(self, render: str) -> list[int]:
        ids: list[int] = []
        for part in re.split("([\ue000-\ue002])", render):
            ids += [self.control[part]] if part in self.control else self.plain.encode(part).ids
        return ids

    def render_ids(self, problem: str, steps: list[str]) -> list[int]:
        return self.ids(self.template.render(problem, steps))

    def card(self, problem: str, steps: list[str]) -> list[int]:
        """The card's loop: every prefix again, stripped, the separator behind all but the last."""
        n = len(steps)
        renders = (self.template.render(problem, steps[:k]).strip() for k in range(1, n + 1))
        return [len(self.ids(text + ("\n\n" if k < n else ""))) - 2 for k, text in enumerate(renders, 1)]


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


def test_end_before_the_response_is_refused() -> None:
    # The literal's "ab" is two tokens alone, but "abc" is one: h lies behind the whole response.
    template = Template("<|im_start|>", "<|im_start|>ab", "<|im_end|>")
    merges = [("b", "c"), ("a", "bc")]
    with pytest.raises(InvalidRecord, match="outside the"):
        encoder(bytes_and(merges), template).encode("?", ["c"], EXACT)


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


# Laws, on nasty text

TEXT = st.lists(st.sampled_from([*FRAGMENTS, *SPECIAL]) | st.text(max_size=3), max_size=10).map("".join)
STEPS = st.lists(TEXT.filter(lambda text: bool(text.strip())), min_size=1, max_size=5)
SUFFIX_TEXT = Template(CHATML.prefix, CHATML.between, " END<|im_end|>\n")
LEADING_SPACE = Template("\n \n" + CHATML.prefix, CHATML.between, CHATML.suffix)
BEGUN_ANSWER = Template(CHATML.prefix, CHATML.between + "Answer: ", CHATML.suffix + "<|endoftext|>")


def no_private_use(text: str) -> bool:
    return not re.search("[\ue000-\ue002]", text)


@pytest.mark.parametrize(
    ("tokenizer", "template"),
    [
        pytest.param(trained(), CHATML, id="trained"),
        pytest.param(trained(added=FLAGGED), CHATML, id="flagged added tokens"),
        pytest.param(trained(added=(CROSSING,)), CHATML, id="added token across a separator"),
        pytest.param(trained(pattern=OTHER_PATTERN), CHATML, id="another pre-tokeniser"),
        pytest.param(bytes_and(LINES), CHATML, id="bytes"),
        pytest.param(trained(), SUFFIX_TEXT, id="suffix begins with text"),
        pytest.param(trained(), LEADING_SPACE, id="prefix begins with white space"),
        pytest.param(trained(), BEGUN_ANSWER, id="begun answer"),
    ],
)
@examples(100)
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
def test_special_token_text_never_becomes_a_control_token_and_is_flagged(
    problem: str, steps: list[str]
) -> None:
    tokenizer = trained()
    encoded = encoder(tokenizer).encode(problem, steps, CARD)
    control = [tokenizer.token_to_id(text) for text in SPECIAL]
    literals = [id_ for id_ in tokenizer.encode(CHATML.render("", [])).ids if id_ in control]
    assert [id_ for id_ in encoded.token_ids.tolist() if id_ in control] == literals
    assert encoded.special_text == any(text in problem + "\0" + "\n\n".join(steps) for text in SPECIAL)


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


@examples(100)
@given(problem=TEXT, steps=STEPS, others=STEPS)
def test_exact_sees_nothing_of_later_steps(problem: str, steps: list[str], others: list[str]) -> None:
    tokenizer = encoder(trained())
    one = tokenizer.encode(problem, [*steps, "Then"], EXACT)
    other = tokenizer.encode(problem, [*steps, "Or " + others[0], *others[1:]], EXACT)
    k, end = len(steps), one.step_ends[len(steps) - 1]
    np.testing.assert_array_equal(one.step_ends[:k], other.step_ends[:k])
    np.testing.assert_array_equal(one.token_ids[: end + 2], other.token_ids[: end + 2])


@examples(100)
@given(problem=TEXT, steps=STEPS)
def test_an_unfinished_answer_is_read_where_it_will_be_when_it_goes_on(
    problem: str, steps: list[str]
) -> None:
    tokenizer = encoder(trained())
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


# Special-token text in odd places


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


# What is refused


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
def test_work_is_linear_in_ten_thousand_steps(convention: Convention, ending: str) -> None:
    steps = [f"step {k} is done{ending}" for k in range(10_000)]
    counting = Counting(trained().to_str(), CHATML, max_tokens=10**6)
    encoded = counting.encode("?", steps, convention)
    assert all(a < b for a, b in pairwise(encoded.step_ends.tolist()[:-1]))
    assert counting.calls <= 2 + len(steps)
    assert counting.characters <= 2 * len("\n\n".join(steps))


def test_the_same_line_end_is_encoded_once() -> None:
    counting = Counting(bytes_and(LINES).to_str(), CHATML, max_tokens=10**6)
    counting.encode("?", [f"{k} is done." for k in range(1000)], CARD)
    assert counting.calls == 3  # problem, response, "."
