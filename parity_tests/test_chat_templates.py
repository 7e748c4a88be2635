"""Token ids and card indices of each family against transformers: its template, pre-tokenizer and BOS."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest
import transformers
from parity_tests.support.model_card import card_ends
from testing.byte_level import nasty_steps, nasty_text
from testing.chat_templates import CHATS, tokenizer_json, write_tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from stepscore.enums import Convention
from stepscore.prompt.encoder import PromptEncoder

NAMES = pytest.mark.parametrize("name", CHATS)
BLANKS = ("", "", "\n", " \n\n", "\t", "\u2003\n")


def loaded(folder: Path, name: str) -> PreTrainedTokenizerFast:
    write_tokenizer(folder, name)
    # transformers 5 builds a GPT2Tokenizer anew, and drops what its tokenizer.json does before GPT-2's regex.
    rebuilt = transformers.__version__ >= "5" and CHATS[name].tokenizer_class == "GPT2Tokenizer"
    kind = PreTrainedTokenizerFast if rebuilt else AutoTokenizer
    tokenizer: PreTrainedTokenizerFast = kind.from_pretrained(folder)
    # Of a template that asks for the date of the day: transformers takes it from the caller as well.
    template = "{%- set date_string = '26 Jul 2024' %}" + CHATS[name].source
    tokenizer.chat_template = template if name == "llama3.2" else CHATS[name].source
    return tokenizer


@NAMES
def test_ids_and_card_indices_are_those_of_transformers(tmp_path: Path, name: str) -> None:
    random, theirs = Random(3), loaded(tmp_path, name)
    encoder = PromptEncoder(tokenizer_json(name), CHATS[name].template, max_tokens=100_000)
    for _ in range(80):
        problem, steps = nasty_text(random), nasty_steps(random)
        problem = random.choice(BLANKS) + problem + random.choice(BLANKS)
        steps = [random.choice(BLANKS) + step + random.choice(BLANKS) for step in steps]
        chat = [{"role": "user", "content": problem}, {"role": "assistant", "content": "\n\n".join(steps)}]
        encoded = encoder.encode(problem, steps, Convention.CARD)
        ids = theirs.apply_chat_template(chat, tokenize=True, return_dict=False)
        assert not encoded.special_text
        assert encoded.token_ids.tolist() == list(ids), (problem, steps)
        assert encoded.step_ends.tolist() == card_ends(theirs, problem, steps), (problem, steps)


@pytest.mark.parametrize("name", [name for name, chat in CHATS.items() if chat.bos])
def test_the_template_brings_the_only_bos(tmp_path: Path, name: str) -> None:
    theirs = loaded(tmp_path, name)
    bos = theirs.convert_tokens_to_ids(CHATS[name].bos)
    assert theirs("1")["input_ids"][0] == bos  # so encoding a text on its own adds one
    ids = PromptEncoder(tokenizer_json(name), CHATS[name].template, max_tokens=1000).encode(
        "1 + 1?", ["2"], Convention.CARD
    )
    assert ids.token_ids.tolist().count(bos) == 1
    assert ids.token_ids[0] == bos
