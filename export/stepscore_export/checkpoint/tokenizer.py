"""Reads tokenizer and chat template of a checkpoint, in the layouts of transformers 4 and 5."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from tokenizers import Tokenizer

from stepscore.errors import CheckpointCorrupt, UnsupportedArchitecture
from stepscore_export.checkpoint.untrusted_folder import CheckpointFolder
from stepscore_export.families.supported import reject_remote_code

TOKENIZER = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
TEMPLATE = "chat_template.jinja"
PROCESSOR_TEMPLATE = "chat_template.json"

LOGGER = logging.getLogger("stepscore")

_Container = TypeVar("_Container", dict[str, Any], list[Any])

# What a class of transformers, or its fast one, assumes where its configuration leaves a token out; null is
# none. PreTrainedTokenizerFast, which Llama 3 has, assumes nothing.
_ASSUMED = {
    "Qwen2Tokenizer": dict.fromkeys(("eos_token", "pad_token", "unk_token"), "<|endoftext|>"),
    "GPT2Tokenizer": dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>"),
    "LlamaTokenizer": {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
}
_SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


@dataclass(frozen=True, slots=True)
class ChatTemplate:
    """Jinja source, and the variables that transformers passes to it besides the messages."""

    text: str
    variables: Mapping[str, str | list[str]]


@dataclass(frozen=True, slots=True)
class TokenizerFile:
    """A tokenizer.json that fits its model."""

    text: str
    largest_id: int


def read_tokenizer(folder: CheckpointFolder, vocab_size: int) -> TokenizerFile:
    """Read tokenizer.json; its ids must be below `vocab_size` (a vocabulary may be padded)."""
    if not folder.has(TOKENIZER):
        raise CheckpointCorrupt(
            f"{TOKENIZER} is missing",
            hint="write it with transformers: AutoTokenizer.from_pretrained(folder).save_pretrained(folder)",
        )
    text = folder.text(TOKENIZER)
    tokenizer = parse_tokenizer(text)
    _check_rules(json.loads(text), tokenizer)
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
    return TokenizerFile(text, largest)


def _check_rules(rules: dict[str, Any], tokenizer: Tokenizer) -> None:
    """Raise for what the tokenizers library reads without a word and encodes otherwise, or at random."""
    for token in rules.get("added_tokens") or []:
        found = tokenizer.token_to_id(token["content"])
        if found != token["id"]:
            raise CheckpointCorrupt(
                f"{TOKENIZER} gives {token['content']!r} the id {token['id']}, its library reads {found}",
                hint="added tokens must be numbered without a gap: save the tokenizer with transformers",
            )
    if dropout := rules["model"].get("dropout"):
        raise UnsupportedArchitecture(
            f"{TOKENIZER}: dropout is {dropout}, so that a text has other ids each time",
            hint="set it to null: it serves training only",
        )


def read_chat_template(folder: CheckpointFolder) -> ChatTemplate:
    """Find the template; as in transformers, a separate file wins over the tokenizer's configuration."""
    config = _tokenizer_config(folder)
    template = folder.text(TEMPLATE) if folder.has(TEMPLATE) else config.get("chat_template")
    if folder.has(TEMPLATE) and config.get("chat_template") not in (None, template):
        LOGGER.warning(
            "the chat template is %s, as in transformers; %s has another", TEMPLATE, TOKENIZER_CONFIG
        )
    if isinstance(template, list):  # transformers 4: several, each with a name
        named = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)}
        if "default" not in named:
            raise UnsupportedArchitecture(
                f"none of the chat templates {sorted(map(str, named))} is named 'default'"
            )
        template = named["default"]
    if not isinstance(template, str) or not template:
        hint = "copy the template that the model was trained with"
        if folder.has(PROCESSOR_TEMPLATE):
            hint = f"{PROCESSOR_TEMPLATE} is read by processors only: write its template to {TEMPLATE}"
        raise UnsupportedArchitecture(
            "the chat template is empty"
            if template == ""
            else f"no chat template, neither in {TEMPLATE} nor in {TOKENIZER_CONFIG}",
            hint=hint,
        )
    return ChatTemplate(template, _template_variables(config))


def parse_tokenizer(text: str) -> Tokenizer:
    """Return the tokenizer of a tokenizer.json; CheckpointCorrupt if it is none."""
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
    kind = str(config.get("tokenizer_class", "")).removesuffix("Fast")
    named: dict[str, Any] = {
        **_ASSUMED.get(kind, {}),
        **{name: config[name] for name in _SPECIAL if name in config},
    }
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
