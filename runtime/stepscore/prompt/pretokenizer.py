"""Recognize the pre-tokenizer of a tokenizer.json: the encoder has a fast path for that of Qwen2."""

from __future__ import annotations

from typing import Any

import msgspec

QWEN2_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def is_qwen2(tokenizer_json: str) -> bool:
    """Return whether pre-tokenization is Qwen2's: NFC or nothing, then its pattern, then byte level."""
    parts: dict[str, Any] = msgspec.json.decode(tokenizer_json)
    match parts.get("normalizer"), parts.get("pre_tokenizer"):
        case (
            None | {"type": "NFC"},
            {
                "type": "Sequence",
                "pretokenizers": [
                    {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False},
                    {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
                ],
            },
        ):
            return bool(pattern == QWEN2_PATTERN)
    return False
