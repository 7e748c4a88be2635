"""Byte-level BPE tokenizers with the pre-tokenizers of the families, and text that tries to break them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from random import Random

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from stepscore.prompt.encoder import PromptEncoder
from stepscore.prompt.template import Template


@dataclass(frozen=True)
class Rules:
    """Normalizer, pre-tokenizer and kind of BPE of a family of tokenizers."""

    pattern: str | None
    """None: GPT-2's, which is part of its byte level."""
    nfc: bool = False
    single_digits: bool = False
    ignore_merges: bool = False


_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN2 = Rules(_WORDS + r"\p{N}" + _REST, nfc=True)
LLAMA3 = Rules(_WORDS + r"\p{N}{1,3}" + _REST, ignore_merges=True)
SMOLLM2 = Rules(None, single_digits=True)
GPT2 = Rules(None)
# Another rule for line breaks: a tokenizer for which no shortcut is proven.
OTHER = Rules(r"\p{L}+\n*|\p{N}{1,3}|[^\s\p{L}\p{N}]+|\s+", nfc=True)
PROVED = {"qwen2": QWEN2, "llama3": LLAMA3, "smollm2": SMOLLM2, "gpt2": GPT2}

CROSSING = AddedToken("1\n\n2", normalized=False, special=False)  # spans a separator

CHATML = Template(
    prefix="<|im_start|>system\nReason step by step.<|im_end|>\n<|im_start|>user\n",
    between="<|im_end|>\n<|im_start|>assistant\n",
    suffix="<|im_end|>\n",
)
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
PLAIN = ("<tool_call>", "</tool_call>")
# One added token for each flag.
FLAGGED = (
    AddedToken("<left>", lstrip=True, normalized=False, special=False),
    AddedToken("<right>", rstrip=True, normalized=False, special=False),
    AddedToken("word", single_word=True, normalized=False, special=False),
    AddedToken("<é>", normalized=True, special=False),
)

WORDS = (
    "a",
    "x",
    "the",
    " the",
    "step",
    " word",
    "word",
    "sum",
    " is",
    "assistant",
    "user\n",
    "Ünïcödé",
    "一二",
    "ﬁ",
)
NUMBERS = ("0", "1", "42", "1234567", "3.14", "٣", "½", "²")
MATHS = ("$", "$$", "\\boxed{", "}", "\\[\n", "\n\\]", "\\frac{1}{2}", "=", " = ", "+", " + ", "≠", "->", "^")
PUNCTUATION = (
    ".",
    ".\n\n",
    "?",
    "!",
    ":",
    ":\n",
    ",",
    ")",
    "'",
    "'s",
    "'LL",
    "...",
    '"',
    "-",
    "|",
    "<",
    ">",
    "|>",
)
SPACES = (
    " ",
    " ",
    "  ",
    "     ",
    "\t",
    "\n",
    "\n\n",
    "\n\n\n",
    " \n",
    "\r\n",
    "\r",
    "\x0b",
    "\x1c",
    "\x85",
    "\xa0",
)
RARE_SPACES = ("\u2003", "\u2028", "\u3000", "\u200b")
MARKS = (
    "\u0301",
    "\u0323\u0301",
    "\u0301\u0323",
    "\u0338",
    "\u0344",
    "e\u0301",
    "\u212b",
    "\u037e",
    "ᄒ",
    "ᅡ",
    "ᆫ",
)
SYMBOLS = ("😀", "👨\u200d👩\u200d👧", "🇫🇷", "\ufeff", "\x00", "\x7f", "\ufffd", "\uffff", "\U0010ffff", "𝟙")
BROKEN_TOKENS = ("<|im_", "end|>", "<|im_end", "|im_end|>", "<|", "<tool_", "call>", "<é", "\u0301>")
LINES = [("Ċ", "Ċ"), (".", "ĊĊ")]  # merges as in Qwen2: "\n\n" is a token, ".\n\n" is a token
FRAGMENTS = (
    *(*WORDS, *NUMBERS, *MATHS, *PUNCTUATION, *SPACES, *RARE_SPACES),
    *(*MARKS, *SYMBOLS, *BROKEN_TOKENS, *PLAIN, CROSSING.content, *(token.content for token in FLAGGED)),
)


def nasty_text(random: Random, fragments: Sequence[str] = FRAGMENTS, *, at_most: int = 12) -> str:
    """Zero to `at_most` fragments; never a special token's text, not even by chance."""
    while True:
        text = "".join(random.choices(fragments, k=random.randint(0, at_most)))
        if not any(special in text for special in SPECIAL):
            return text


def nasty_steps(random: Random, fragments: Sequence[str] = FRAGMENTS, *, at_most: int = 5) -> list[str]:
    """One to five steps, none of them blank."""
    steps: list[str] = []
    while len(steps) < random.randint(1, at_most):
        step = nasty_text(random, fragments)
        if step.strip():
            steps.append(step)
    return steps


def bytes_and(merges: Iterable[tuple[str, str]] = (), *, rules: Rules = QWEN2) -> Tokenizer:
    """The 256 bytes, then the merges in this order, in byte-level spelling: Ċ is a line break, Ġ a space."""
    merges = list(merges)
    texts = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *("".join(merge) for merge in merges)]
    vocabulary = {text: index for index, text in enumerate(dict.fromkeys(texts))}
    return _with_added_tokens(_with_rules(Tokenizer(models.BPE(vocabulary, merges)), rules))


@cache
def trained(*, added: Sequence[AddedToken] = (), rules: Rules = QWEN2, size: int = 700) -> Tokenizer:
    """A vocabulary learned from the nasty text itself, so that many an odd merge exists."""
    tokenizer = _with_rules(Tokenizer(models.BPE(ignore_merges=rules.ignore_merges)), rules)
    random = Random(0)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator((nasty_text(random, at_most=30) for _ in range(2000)), trainer)
    return _with_added_tokens(tokenizer, added)


def without_special(tokenizer: Tokenizer) -> Tokenizer:
    """The same ids, but no special token is known, so none can be matched."""
    parts = json.loads(tokenizer.to_str())
    parts["added_tokens"] = [token for token in parts["added_tokens"] if not token["special"]]
    return Tokenizer.from_str(json.dumps(parts))


def _with_rules(tokenizer: Tokenizer, rules: Rules) -> Tokenizer:
    if rules.nfc:
        tokenizer.normalizer = normalizers.NFC()
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=rules.pattern is None)
    before = [pre_tokenizers.Digits(individual_digits=True)] if rules.single_digits else []
    if rules.pattern is not None:
        before += [pre_tokenizers.Split(Regex(rules.pattern), behavior="isolated")]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*before, byte_level]) if before else byte_level
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _with_added_tokens(tokenizer: Tokenizer, more: Iterable[AddedToken] = ()) -> Tokenizer:
    """Special ones last, so that they can be taken away without moving an id."""
    tokenizer.add_tokens([*(AddedToken(text, normalized=False, special=False) for text in PLAIN), *more])
    tokenizer.add_special_tokens([AddedToken(text, normalized=False, special=True) for text in SPECIAL])
    return tokenizer


def encoder(tokenizer: Tokenizer, template: Template = CHATML, max_tokens: int = 100_000) -> PromptEncoder:
    """Return the encoder of a tokenizer; the same one for the same tokenizer and template."""
    return _encoder(tokenizer.to_str(), template, max_tokens)


@cache
def _encoder(tokenizer_json: str, template: Template, max_tokens: int) -> PromptEncoder:
    return PromptEncoder(tokenizer_json, template, max_tokens=max_tokens)
