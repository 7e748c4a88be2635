"""Token ids and card indices against transformers, called as the model card calls it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import islice
from random import Random
from typing import Any

import pytest
from testing.byte_level import (
    CHATML,
    CROSSING,
    FLAGGED,
    FRAGMENTS,
    SPECIAL,
    bytes_and,
    nasty_steps,
    nasty_text,
    trained,
)
from testing.shared_data import SHARED_DATA
from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from stepscore.enums import Convention
from stepscore.prompt.encoder import PromptEncoder
from stepscore.prompt.template import Template

CHAT_TEMPLATE = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\nReason step by step.<|im_end|>\n{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}{% endfor %}"
)


def messages(problem: str, steps: Sequence[str]) -> list[dict[str, str]]:
    return [{"role": "user", "content": problem}, {"role": "assistant", "content": "\n\n".join(steps)}]


def transformers_ids(tokenizer: PreTrainedTokenizerBase, problem: str, steps: Sequence[str]) -> list[int]:
    chat = messages(problem, steps)
    return list(
        tokenizer.apply_chat_template(chat, tokenize=True, add_generation_prompt=False, return_dict=False)
    )


def card_indices(tokenizer: PreTrainedTokenizerBase, problem: str, steps: Sequence[str]) -> list[int]:
    """The usage code of the EurusPRM-Stage2 card, its loop over the steps."""
    indices = []
    for step_num in range(len(steps) + 1):
        chat = messages(problem, steps[:step_num])
        conv = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=False)
        conv = conv.strip()
        if step_num not in (0, len(steps)):
            conv += "\n\n"
        indices.append(len(tokenizer.encode(conv, add_special_tokens=False)) - 2)
    return indices[1:]


def as_transformers(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    copy = Tokenizer.from_str(tokenizer.to_str())
    return PreTrainedTokenizerFast(
        tokenizer_object=copy, eos_token="<|im_end|>", pad_token="<|endoftext|>", chat_template=CHAT_TEMPLATE
    )


@pytest.mark.parametrize(
    ("tokenizer", "cases"),
    [
        pytest.param(trained(), 400, id="trained"),
        pytest.param(trained(added=FLAGGED), 600, id="flagged added tokens"),
        pytest.param(trained(added=(CROSSING,)), 200, id="added token across a separator"),
        pytest.param(trained(size=2000), 200, id="large"),
        pytest.param(bytes_and([("Ċ", "Ċ"), (".", "ĊĊ")]), 200, id="bytes"),
    ],
)
def test_generated_text_is_encoded_as_transformers_and_the_card_do(tokenizer: Tokenizer, cases: int) -> None:
    random = Random(cases)
    encoder = PromptEncoder(tokenizer.to_str(), CHATML, max_tokens=100_000)
    theirs = as_transformers(tokenizer)
    for _ in range(cases):
        problem, steps = nasty_text(random), nasty_steps(random)
        encoded = encoder.encode(problem, steps, Convention.CARD)
        assert not encoded.special_text
        assert encoded.token_ids.tolist() == transformers_ids(theirs, problem, steps), (problem, steps)
        assert encoded.step_ends.tolist() == card_indices(theirs, problem, steps), (problem, steps)


def test_special_token_text_is_the_one_difference_from_transformers() -> None:
    tokenizer = trained()
    encoder = PromptEncoder(tokenizer.to_str(), CHATML, max_tokens=100_000)
    encoded = encoder.encode("1 + 1?", ["a<|im_end|>b"], Convention.CARD)
    assert encoded.special_text
    assert encoded.token_ids.tolist() != transformers_ids(
        as_transformers(tokenizer), "1 + 1?", ["a<|im_end|>b"]
    )


def test_generated_text_reaches_what_it_is_meant_to_reach() -> None:
    random = Random(0)
    text = "\n".join(nasty_text(random) for _ in range(1000))
    assert all(fragment in text for fragment in FRAGMENTS)
    assert not any(token in text for token in SPECIAL)


# Real text, real tokenizer


@pytest.fixture(scope="module")
def real() -> PreTrainedTokenizerBase:
    assert SHARED_DATA is not None
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(SHARED_DATA / "qwen2.5-math-tokenizer")
    return tokenizer


def real_encoder(real: PreTrainedTokenizerBase) -> tuple[PromptEncoder, Template]:
    assert SHARED_DATA is not None
    render = real.apply_chat_template(messages("PROBLEM", ["RESPONSE"]), tokenize=False)
    prefix, rest = render.split("PROBLEM")
    between, suffix = rest.split("RESPONSE")
    template = Template(prefix, between, suffix)
    text = (SHARED_DATA / "qwen2.5-math-tokenizer" / "tokenizer.json").read_text("utf-8")
    return PromptEncoder(text, template, max_tokens=100_000), template


def solutions(name: str) -> Iterator[dict[str, Any]]:
    assert SHARED_DATA is not None
    with (SHARED_DATA / name).open(encoding="utf-8") as lines:
        yield from map(json.loads, lines)


@pytest.mark.shared_data
@pytest.mark.skipif(SHARED_DATA is None, reason="no shared data")
@pytest.mark.parametrize(
    ("name", "one_in"),
    [("math_best_of_8.jsonl", 1), ("gsm8k_solutions.jsonl", 4), ("processbench_gsm8k.jsonl", 1)],
)
def test_real_solutions_are_encoded_as_transformers_and_the_card_do(
    real: PreTrainedTokenizerBase, name: str, one_in: int
) -> None:
    encoder, template = real_encoder(real)
    backend = real.backend_tokenizer
    for at, record in enumerate(islice(solutions(name), 0, None, one_in)):
        problem, steps = record["problem"], record["steps"]
        encoded = encoder.encode(problem, steps, Convention.CARD)
        assert encoded.token_ids.tolist() == transformers_ids(real, problem, steps), record["id"]
        # Every prefix again, which is quadratic: of one in four. By the card's own code: of one in fifty.
        if at % 4 == 0:
            renders = [template.render(problem, steps[:k]).strip() for k in range(1, len(steps) + 1)]
            prefixes = [*(text + "\n\n" for text in renders[:-1]), renders[-1]]
            counted = backend.encode_batch_fast(prefixes, add_special_tokens=False)
            assert encoded.step_ends.tolist() == [len(prefix) - 2 for prefix in counted], record["id"]
        if at % 50 == 0:
            assert encoded.step_ends.tolist() == card_indices(real, problem, steps), record["id"]
