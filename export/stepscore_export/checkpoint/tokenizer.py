"""Reads tokenizer and chat template of a checkpoint, in the layouts of transformers 4 and 5."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from tokenizers import Tokenizer

from stepscore.errors import CheckpointCorrupt, UnsupportedArchitecture
from stepscore_export.checkpoint.untrusted_folder import CheckpointFolder
from stepscore_export.families.supported import default_special_tokens, reject_remote_code

TOKENIZER = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
TEMPLATE = "chat_template.jinja"

_Container = TypeVar("_Container", dict[str, Any], list[Any])

_SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


@dataclass(frozen=True, slots=True)
class ChatTemplate:
    """Jinja source, and the variables that transformers passes to it besides the messages."""

    text: str
    variables: Mapping[str, str | list[str]]


def read_tokenizer(folder: CheckpointFolder, vocab_size: int) -> str:
    """Return the text of tokenizer.json; its ids must be below `vocab_size` (a vocabulary may be padded)."""
    if not folder.has(TOKENIZER):
        raise CheckpointCorrupt(
            f"{TOKENIZER} is missing",
            hint="write it with transformers: AutoTokenizer.from_pretrained(folder).save_pretrained(folder)",
        )
    text = folder.text(TOKENIZER)
    tokenizer = _parse(text)
    largest = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)
    if largest >= vocab_size:
        raise CheckpointCorrupt(f"{TOKENIZER} has token id {largest}, but vocab_size is {vocab_size}")
    for index, token in _entry(_tokenizer_config(folder), "added_tokens_decoder", dict).items():
        content = _content(token)
        if content is None or str(tokenizer.token_to_id(content)) != index:
            raise CheckpointCorrupt(
                f"{TOKENIZER_CONFIG} has token {index} as {content!r}, {TOKENIZER} does not",
                hint="download or save the tokenizer again",
            )
    return text


def read_chat_template(folder: CheckpointFolder) -> ChatTemplate:
    """Find the template; as in transformers, a separate file wins over the tokenizer's configuration."""
    config = _tokenizer_config(folder)
    template = folder.text(TEMPLATE) if folder.has(TEMPLATE) else config.get("chat_template")
    if isinstance(template, list):  # transformers 4: several, each with a name
        named = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)}
        if "default" not in named:
            raise UnsupportedArchitecture(
                f"none of the chat templates {sorted(map(str, named))} is named 'default'"
            )
        template = named["default"]
    if not isinstance(template, str):
        raise UnsupportedArchitecture(
            f"no chat template, neither in {TEMPLATE} nor in {TOKENIZER_CONFIG}",
            hint="copy the template that the model was trained with",
        )
    return ChatTemplate(template, _template_variables(config))


def tokenizer_difference(first: str, second: str) -> str | None:
    """Name the part by which two tokenizer.json give different ids to some text; None if there is none.

    Rules are compared, not bytes: spelling of merges, key order, post-processing and the flag "special"
    change no id and may differ.
    """
    if first == second:
        return None
    rules, others = _rules(first), _rules(second)
    return next((part for part in rules if rules[part] != others[part]), None)


def _rules(text: str) -> dict[str, Any]:
    """Return the parts that decide ids, in the library's own spelling."""
    rules = json.loads(_parse(text).to_str())
    model = rules["model"]
    added = [{key: token[key] for key in token if key != "special"} for token in rules["added_tokens"]]
    return {
        "vocabulary": model.pop("vocab", None),
        "merges": model.pop("merges", None),
        "model": model,
        "added tokens": sorted(added, key=lambda token: int(token["id"])),
        "normalizer": rules["normalizer"],
        "pre-tokenizer": rules["pre_tokenizer"],
    }


def _parse(text: str) -> Tokenizer:
    try:
        return Tokenizer.from_str(text)
    except Exception as error:  # the library raises plain Exception
        raise CheckpointCorrupt(f"{TOKENIZER} cannot be read as a tokenizer: {error}") from None


def _tokenizer_config(folder: CheckpointFolder) -> dict[str, Any]:
    config = folder.json(TOKENIZER_CONFIG) if folder.has(TOKENIZER_CONFIG) else {}
    reject_remote_code(config, TOKENIZER_CONFIG)
    return config


def _template_variables(config: Mapping[str, Any]) -> dict[str, str | list[str]]:
    """Return transformers' `special_tokens_map`: every special token that is set, by its name."""
    defaults = default_special_tokens(str(config.get("tokenizer_class", "")))
    named = {name: config[name] if name in config else defaults.get(name) for name in _SPECIAL}
    if isinstance(extra := config.get("extra_special_tokens"), dict):  # transformers 5: a list, not variables
        named |= extra
    variables: dict[str, str | list[str]] = {
        name: content for name, token in named.items() if (content := _content(token))
    }
    additional = [_content(token) or "" for token in _entry(config, "additional_special_tokens", list)]
    return variables | ({"additional_special_tokens": additional} if additional else {})


def _entry(config: Mapping[str, Any], key: str, kind: type[_Container]) -> _Container:
    """Return the value of an optional key, empty where it is absent or null."""
    value = config.get(key)
    if value is not None and not isinstance(value, kind):
        raise CheckpointCorrupt(f"{TOKENIZER_CONFIG}: {key} is {value!r}, expected a {kind.__name__}")
    return kind() if value is None else value


def _content(token: object) -> str | None:
    """Return the text of a token, which is a string or an object with the string as `content`."""
    content = token.get("content") if isinstance(token, dict) else token
    return content if isinstance(content, str) else None
