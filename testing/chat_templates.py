"""Chat templates of the families, and tiny tokenizers with their rules and control tokens.

Each template takes the way of the published one through a conversation of one user and one assistant message,
with its constructs, and leaves tools and pictures out.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from testing.byte_level import LLAMA3, QWEN2, SMOLLM2, Rules, trained, without_special
from testing.checkpoints import write_json
from tokenizers import AddedToken, Tokenizer, processors

from stepscore.prompt.template import Strip, Template, TextRule

STRIPPED = TextRule(Strip.WHITE_SPACE, Strip.WHITE_SPACE)

_LLAMA_DATE = """\
{%- if not date_string is defined %}{%- set date_string = "26 Jul 2024" %}{%- endif %}"""
_LLAMA_DATE_OF_THE_DAY = """\
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}
        {%- set date_string = "26 Jul 2024" %}
    {%- endif %}
{%- endif %}"""
_LLAMA = """\
{{- bos_token }}DATE
{%- if not tools is defined %}{%- set tools = none %}{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set own = messages[0]['content']|trim %}{%- set messages = messages[1:] %}
{%- else %}
    {%- set own = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{%- if tools is not none %}{{- "Environment: ipython\\n" }}{%- endif %}
{{- "Cutting Knowledge Date: December 2023\\n" }}{{- "Today Date: " + date_string + "\\n\\n" }}
{{- own }}{{- "<|eot_id|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
        {{- message['content'] | trim + '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}
"""
_LLAMA3_0 = (
    "{% for m in messages %}{% set text = '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n'"
    " + m['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set text = bos_token + text %}"
    "{% endif %}{{ text }}{% endfor %}"
)
_QWEN3 = """\
{%- if messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(looking=true, last=messages|length - 1) %}
{%- for m in messages[::-1] %}
    {%- if ns.looking and m.role == "user" and m.content is string
        and not (m.content.startswith('<tool_response>') and m.content.endswith('</tool_response>')) %}
        {%- set ns.looking = false %}{%- set ns.last = (messages|length - 1) - loop.index0 %}
    {%- endif %}
{%- endfor %}
{%- for m in messages %}
    {%- set content = m.content if m.content is string else '' %}
    {%- if m.role == "user" %}
        {{- '<|im_start|>' + m.role + '\\n' + content + '<|im_end|>' + '\\n' }}
    {%- elif m.role == "assistant" %}
        {%- set thought = '' %}
        {%- if m.reasoning_content is string %}
            {%- set thought = m.reasoning_content %}
        {%- elif '</think>' in content %}
            {%- set thought = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last and (loop.last or thought) %}
            {{- '<|im_start|>' + m.role + '\\n<think>\\n' + thought.strip('\\n') + '\\n</think>\\n\\n' }}
            {{- content.lstrip('\\n') }}
        {%- else %}
            {{- '<|im_start|>' + m.role + '\\n' + content }}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""
_SMOLLM2 = (
    "{% for m in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face'"
    " + '<|im_end|>\n' }}"
    "{% endif %}{{'<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_HEADERS = (
    "<|start_header_id|>user<|end_header_id|>\n\n",
    "<|start_header_id|>assistant<|end_header_id|>\n\n",
)


@dataclass(frozen=True)
class Chat:
    """A chat template as published, what it is to become, and the tokenizer that comes with it."""

    source: str
    template: Template
    rules: Rules
    tokenizer_class: str
    special: tuple[str, ...]
    plain: tuple[str, ...] = ()
    """Added tokens that are not flagged special."""
    variables: Mapping[str, str] = field(default_factory=dict)
    bos: str | None = None
    """What the post-processor of tokenizer.json puts before a text that is encoded on its own."""


def _llama(source: str, system: str) -> Chat:
    user, assistant = _HEADERS
    return Chat(
        source=source,
        template=Template(
            "<|begin_of_text|>" + system + user, "<|eot_id|>" + assistant, "<|eot_id|>", STRIPPED, STRIPPED
        ),
        rules=LLAMA3,
        tokenizer_class="PreTrainedTokenizerFast",
        special=("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        variables={"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"},
        bos="<|begin_of_text|>",
    )


_DATED = (
    "<|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\n"
    "Today Date: 26 Jul 2024\n\n<|eot_id|>"
)
_CHATML = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")

CHATS: Mapping[str, Chat] = {
    "llama3": _llama(_LLAMA3_0, ""),
    "llama3.1": _llama(_LLAMA.replace("DATE", _LLAMA_DATE), _DATED),
    "llama3.2": _llama(_LLAMA.replace("DATE", _LLAMA_DATE_OF_THE_DAY), _DATED),
    "qwen3": Chat(
        source=_QWEN3,
        template=Template(
            "<|im_start|>user\n",
            "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
            "<|im_end|>\n",
            TextRule(rejected=("<tool_response>",)),
            TextRule(left=Strip.LINE_FEEDS, rejected=("</think>",)),
        ),
        rules=QWEN2,
        tokenizer_class="Qwen2Tokenizer",
        special=_CHATML,
        plain=("<think>", "</think>", "<tool_response>", "</tool_response>"),
        variables={"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"},
    ),
    "smollm2": Chat(
        source=_SMOLLM2,
        template=Template(
            "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
            "<|im_end|>\n<|im_start|>user\n",
            "<|im_end|>\n<|im_start|>assistant\n",
            "<|im_end|>\n",
        ),
        rules=SMOLLM2,
        tokenizer_class="GPT2Tokenizer",
        special=_CHATML,
        variables={"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "unk_token": "<|endoftext|>"},
    ),
}


@cache
def tokenizer_json(name: str) -> str:
    """Return a tokenizer.json with the rules, the added tokens and the post-processor of a family."""
    chat = CHATS[name]
    parts = json.loads(without_special(trained(rules=chat.rules)).to_str())
    tokenizer = Tokenizer.from_str(json.dumps(parts | {"added_tokens": []}))
    tokenizer.add_tokens([AddedToken(text, normalized=False, special=False) for text in chat.plain])
    tokenizer.add_special_tokens([AddedToken(text, normalized=False, special=True) for text in chat.special])
    if chat.bos is not None:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{chat.bos} $A", special_tokens=[(chat.bos, tokenizer.token_to_id(chat.bos))]
        )
    return tokenizer.to_str()


def write_tokenizer(folder: Path, name: str) -> None:
    """Write tokenizer.json and tokenizer_config.json of a family."""
    (folder / "tokenizer.json").write_text(tokenizer_json(name), encoding="utf-8")
    config: dict[str, Any] = {
        "tokenizer_class": CHATS[name].tokenizer_class,
        "chat_template": CHATS[name].source,
        "clean_up_tokenization_spaces": False,
        **CHATS[name].variables,
    }
    write_json(folder / "tokenizer_config.json", config)
