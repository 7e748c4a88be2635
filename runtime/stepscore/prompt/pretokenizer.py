"""What is proved of a pre-tokenizer, by which the encoder cuts texts instead of encoding them again.

A pre-tokenizer is a record of properties; one that is not in the list has none, and whole texts are encoded.
`tests/runtime/prompt/test_pretokenizer.py` holds each property against whole encodings.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

QWEN2_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3_PATTERN = QWEN2_PATTERN.replace(r"|\p{N}|", r"|\p{N}{1,3}|")


@dataclass(frozen=True, slots=True)
class PreTokenizer:
    """Properties of the pre-tokens of a text, which hold with each of them encoded on its own."""

    is_local: bool
    """Whether a text that is cut has the pre-tokens of the whole text up to the one that contains the last
    character before the cut; for cuts before a line feed, and behind a character that is no white space.

    It holds where a match depends on no character before it, and on those after it only where it is white
    space; and all white space before a line feed is in one match. So `\\p{N}{1,3}` is local: a number is
    grouped from its first digit, and a cut changes its last group only.
    """
    cut: re.Pattern[str] | None
    """Positions at which a text can be cut anywhere: the pre-tokens of the parts are those of the whole."""
    looks_past_separator: bool
    r"""Whether the pre-tokens of "\n\n" depend on the character that follows, be it no white space: before a
    letter, `\s+(?!\S)` leaves one of the line feeds to the next match."""


UNPROVED = PreTokenizer(is_local=False, cut=None, looks_past_separator=True)

# A space begins a match where no white space is before it, and what ends in line breaks ends with the last.
_BREAKS_AT_LINE_FEEDS = PreTokenizer(
    is_local=True, cut=re.compile(r"(?<=\S)(?= )|(?<=\n)(?=\S)"), looks_past_separator=False
)
# White space begins a match where no white space is before it. Not in `\s`, by which Python means more.
_BREAKS_AT_WHITE_SPACE = PreTokenizer(
    is_local=True, cut=re.compile(r"(?<=\S)(?=[ \n])"), looks_past_separator=True
)


def _split(pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def _sequence(*steps: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", "pretokenizers": list(steps)}


_BYTES = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
_GPT2 = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
_DIGITS = {"type": "Digits", "individual_digits": True}

PROVED: tuple[tuple[dict[str, Any], PreTokenizer], ...] = (
    (_sequence(_split(QWEN2_PATTERN), _BYTES), _BREAKS_AT_LINE_FEEDS),  # Qwen2, Qwen2.5, Qwen3
    (_sequence(_split(LLAMA3_PATTERN), _BYTES), _BREAKS_AT_LINE_FEEDS),  # Llama 3
    (_sequence(_DIGITS, _GPT2), _BREAKS_AT_WHITE_SPACE),  # SmolLM2
    (_GPT2, _BREAKS_AT_WHITE_SPACE),
)


class _Rules(msgspec.Struct):
    normalizer: Any = None
    pre_tokenizer: Any = None


def pre_tokenizer(tokenizer_json: str) -> PreTokenizer:
    """Return what is proved of the pre-tokenizer of a tokenizer.json, after NFC or no normalizer."""
    rules = msgspec.json.decode(tokenizer_json, type=_Rules)
    if rules.normalizer not in (None, {"type": "NFC"}):
        return UNPROVED
    found = _without_offsets(rules.pre_tokenizer)
    return next((known for rule, known in PROVED if rule == found), UNPROVED)


def _without_offsets(rule: Any) -> Any:
    """Return a rule without the key that only moves offsets, with the default that GPT-2's leaves out."""
    match rule:
        case {"type": "Sequence", "pretokenizers": list(steps)}:
            return _sequence(*map(_without_offsets, steps))
        case {"type": "ByteLevel"}:
            return {"use_regex": True} | {key: rule[key] for key in rule if key != "trim_offsets"}
    return rule
