"""Finds out whether two tokenizers give every text the same ids: by their rules, then by encoding.

Spelling of merges, key order, post-processing, truncation, padding and offsets change no id, and some keys of
a model do so only together with others. `ignore_merges` changes none where the merges lead to every entry of
the vocabulary, which only encoding can tell.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from tokenizers import Tokenizer, pre_tokenizers

from stepscore_export.checkpoint.tokenizer import parse_tokenizer

# What tokenizers are known to treat differently: cases, digits, spaces, line ends, scripts, normal forms.
_TEXTS = (
    "The answer is \\boxed{1,234.56}.\n\nStep 2:  it's\t\r\n\r\n   WE'LL see 10^{-3}  ",
    " leading, trailing \n \n\n\n \u00a0\u200b\u3000 e\u0301 \u00e9 \u212b \ufb01 ∑ 数学 한국 ١٢٣ 🙂🏽",
    "".join(map(chr, range(32, 127))),
)


def tokenizer_difference(first: str, second: str) -> str | None:
    """Name the part by which two tokenizer.json give different ids to some text, None if there is none.

    A special token that only one of them has is no difference: the runtime encodes its text as ordinary text.
    Control tokens of the chat template must be in both (`check_template`).
    """
    if first == second:
        return None
    one, other = parse_tokenizer(first), parse_tokenizer(second)
    rules, others = _rules(one), _rules(other)
    _drop_special_of_one(rules["added tokens"], others["added tokens"])
    for part, rule in rules.items():
        if rule != others[part] and not (part == "model" and _merges_decide(one, rule, others[part])):
            return f"{part}: {_first_difference(rule, others[part])}"
    for text in (*_TEXTS, *rules["added tokens"]):
        if _ids(one, text) != _ids(other, text):
            return f"ids of the text {text[:40]!r}"
    return None


def _rules(tokenizer: Tokenizer) -> dict[str, Any]:
    """Return the parts that decide ids, in one spelling, in the order in which they are compared."""
    rules = _json(tokenizer)
    model = rules["model"]
    vocabulary, merges = model.pop("vocab", None), model.pop("merges", None)
    chain = _chain(rules["pre_tokenizer"], "pretokenizers")
    if model["type"] == "BPE":
        for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
            model[key] = model[key] or None
        if chain and chain[-1]["type"] == "ByteLevel" and vocabulary.keys() >= _BYTES:
            for key in ("unk_token", "fuse_unk", "byte_fallback"):  # of what is not in the vocabulary
                del model[key]
    return {
        "vocabulary": vocabulary,
        "merges": merges,
        "model": model,
        "added tokens": {token["content"]: token for token in rules["added_tokens"]},
        "normalizer": _chain(rules["normalizer"], "normalizers"),
        "pre-tokenizer": chain,
    }


_BYTES = set(pre_tokenizers.ByteLevel.alphabet())


def _chain(rule: dict[str, Any] | None, parts: str) -> list[dict[str, Any]]:
    """Return the steps of a normalizer or pre-tokenizer, without the key that only moves offsets."""
    if rule is None:
        return []
    if rule["type"] == "Sequence":
        return [step for part in rule[parts] for step in _chain(part, parts)]
    return [{key: value for key, value in rule.items() if key != "trim_offsets"}]


def _drop_special_of_one(first: dict[str, dict[str, Any]], second: dict[str, dict[str, Any]]) -> None:
    for tokens, others in ((first, second), (second, first)):
        for content in [each for each in tokens if tokens[each]["special"] and each not in others]:
            del tokens[content]
    for token in (*first.values(), *second.values()):
        token.pop("special", None)


def _merges_decide(tokenizer: Tokenizer, rule: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Return whether models of one vocabulary differ in `ignore_merges` alone, and that changes no id.

    It takes a whole word that is in the vocabulary as it is; so it changes nothing if the merges lead there.
    """
    if {**rule, "ignore_merges": None} != {**other, "ignore_merges": None}:
        return False
    parts = _json(tokenizer)
    without = dict.fromkeys(("normalizer", "pre_tokenizer", "post_processor", "decoder"))
    alone = {**parts, **without, "added_tokens": [], "model": {**parts["model"], "ignore_merges": False}}
    vocabulary: dict[str, int] = parts["model"]["vocab"]
    found = Tokenizer.from_str(json.dumps(alone)).encode_batch_fast(
        list(vocabulary), add_special_tokens=False
    )
    return all(each.ids == [index] for each, index in zip(found, vocabulary.values(), strict=True))


def _first_difference(rule: Any, other: Any) -> str:
    if isinstance(rule, dict) and isinstance(other, dict):
        key = next(key for key in (*rule, *other) if rule.get(key) != other.get(key))
        return f"{key!r} is {repr(rule.get(key))[:80]} in the one, {repr(other.get(key))[:80]} in the other"
    if isinstance(rule, list) and isinstance(other, list) and len(rule) == len(other):
        index = next(index for index, each in enumerate(rule) if each != other[index])
        return (
            f"number {index} is {repr(rule[index])[:80]} in the one, {repr(other[index])[:80]} in the other"
        )
    return f"{repr(rule)[:80]} and {repr(other)[:80]}"


def _ids(tokenizer: Tokenizer, text: str) -> list[int]:
    tokenizer.no_truncation()
    tokenizer.no_padding()
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
    return ids


def _json(tokenizer: Tokenizer) -> dict[str, Any]:
    parts: dict[str, Any] = json.loads(tokenizer.to_str())
    return parts
