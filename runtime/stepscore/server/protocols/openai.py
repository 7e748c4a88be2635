"""OpenAI-like routes for log-probs: /v1/completions with `echo`, /v1/chat/completions with `prompt_logprobs`.

The model is `policy` or `reference`. Nothing is generated. With `max_tokens` 1 a completion still ends in one
entry that stands for the generated token, since clients cut off the last one: its text is empty and its
log-prob null.

`top_logprobs` hold the token itself, and with `logprobs` 1 also what any other token has at most,
log(1 - p): a client that takes the largest for the top token finds a token to be the top one only where it
surely is, with p above 1/2.
"""

from __future__ import annotations

from itertools import accumulate
from math import expm1, inf, log
from typing import Any

import msgspec

from stepscore.errors import InputError, InvalidRecord
from stepscore.records import Record
from stepscore.scheduling.requests import Request
from stepscore.server.protocols.logprobs import (
    NO_GENERATION,
    Prompt,
    Scored,
    check_most,
    envelope,
    model_named,
    prompt_ids,
    prompt_logprobs,
    request,
    scored,
    usage,
)
from stepscore.server.protocols.solutions import Message, check_turn, conversation, refuse
from stepscore.server.routes import Context, Outcome, Route

OTHERS_AT_MOST = "(any other token, at most)"
LEAST = -9999.0
"""What vLLM writes for minus infinity, which JSON has no number for."""


class Completion(msgspec.Struct, frozen=True, kw_only=True):
    """Body of /v1/completions; fields that only shape a generation have no effect."""

    prompt: Prompt
    model: str | None = None
    max_tokens: int | None = None
    echo: bool = False
    logprobs: int | None = None
    prompt_logprobs: int | bool | None = None
    n: int | None = None
    best_of: int | None = None
    stream: bool | None = None
    suffix: str | None = None
    truncate_prompt_tokens: int | None = None


class Chat(msgspec.Struct, frozen=True, kw_only=True):
    """Body of /v1/chat/completions; fields that only shape a generation have no effect."""

    messages: list[Message]
    model: str | None = None
    prompt_logprobs: int | bool | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    chat_template: str | None = None
    n: int | None = None
    stream: bool | None = None
    logprobs: bool | None = None
    tools: list[Any] | None = None


def _completion_requests(body: Completion, context: Context) -> list[Request | InputError]:
    model_named(body.model)
    refuse({"stream": body.stream, "suffix": body.suffix}, NO_GENERATION)
    refuse({"n": body.n not in (None, 1), "best_of": body.best_of not in (None, 1)}, NO_GENERATION)
    refuse({"truncate_prompt_tokens": body.truncate_prompt_tokens}, "prompts are scored whole")
    if body.max_tokens is None:
        raise InvalidRecord("`max_tokens` is missing, which means 16", hint="set it to 0 or 1")
    check_most("max_tokens", body.max_tokens)
    check_most("logprobs", body.logprobs)
    check_most("prompt_logprobs", body.prompt_logprobs)
    if (not body.echo or body.logprobs is None) and body.prompt_logprobs is None:
        raise InvalidRecord(
            f"`echo` with `logprobs`, or `prompt_logprobs`, is needed: {NO_GENERATION}",
            hint='send "echo": true, "logprobs": 1',
        )
    return [request(ids) for ids in prompt_ids(body.prompt, context)]


def _completion_answer(body: Completion, outcomes: list[Outcome], context: Context) -> object:
    model = model_named(body.model)
    prompts = [
        scored(outcome, model, context, ids)
        for ids, outcome in zip(prompt_ids(body.prompt, context), outcomes, strict=True)
    ]
    choices = [_choice(body, index, prompt) for index, prompt in enumerate(prompts)]
    num_tokens = sum(len(prompt.ids) for prompt in prompts)
    return envelope("text_completion", "cmpl", body.model or model.value) | {
        "choices": choices,
        "usage": usage(num_tokens),
    }


def _choice(body: Completion, index: int, prompt: Scored) -> dict[str, object]:
    echoes = body.echo and body.logprobs is not None
    return {
        "index": index,
        "text": "".join(prompt.texts) if body.echo else "",
        "logprobs": _completion_logprobs(body, prompt) if echoes else None,
        "finish_reason": "length",
        "stop_reason": None,
        "prompt_logprobs": None if body.prompt_logprobs is None else prompt_logprobs(prompt),
    }


def _completion_logprobs(body: Completion, prompt: Scored) -> dict[str, object]:
    placeholder = body.max_tokens or 0
    texts = prompt.texts + [""] * placeholder
    values = [None if value is None else max(value, LEAST) for value in prompt.logprobs]
    values += [None] * placeholder
    offsets = [0, *accumulate(map(len, texts))][: len(texts)]
    top = [
        None if value is None else _top(text, value, body.logprobs or 0)
        for text, value in zip(texts, values, strict=True)
    ]
    return {"tokens": texts, "token_logprobs": values, "top_logprobs": top, "text_offset": offsets}


def _top(text: str, value: float, alternatives: int) -> dict[str, float]:
    """Return the token's log-prob, and with an alternative the bound log(1 - p) of all others."""
    if not alternatives:
        return {text: value}
    rest = -expm1(value)
    return {text: value, OTHERS_AT_MOST: max(log(rest) if rest > 0 else -inf, LEAST)}


def _chat_requests(body: Chat, context: Context) -> list[Request | InputError]:
    model_named(body.model)
    refuse({"stream": body.stream, "n": body.n not in (None, 1), "logprobs": body.logprobs}, NO_GENERATION)
    refuse(
        {
            "tools": body.tools,
            "chat_template": body.chat_template,
            "continue_final_message": body.continue_final_message,
        },
        "the chat template is that of the pair",
    )
    if body.prompt_logprobs is None or body.prompt_logprobs is False:
        raise InvalidRecord(f"`prompt_logprobs` is needed: {NO_GENERATION}", hint='send "prompt_logprobs": 0')
    check_most("prompt_logprobs", body.prompt_logprobs)
    most = body.max_completion_tokens if body.max_tokens is None else body.max_tokens
    if most is None:
        raise InvalidRecord(
            "`max_completion_tokens` is missing: no text is generated", hint="set it to 0 or 1"
        )
    check_most("max_completion_tokens", most)
    if body.add_generation_prompt:
        raise InvalidRecord(
            "`add_generation_prompt` is true by default, and would add tokens after the assistant message",
            hint='send "add_generation_prompt": false',
        )
    problem, response = conversation(body.messages, context)
    check_turn("the problem", problem, context)
    check_turn("the response", response, context)
    return [Request(Record(problem, (response,)), tokens=True)]


def _chat_answer(body: Chat, outcomes: list[Outcome], context: Context) -> object:
    model = model_named(body.model)
    (outcome,) = outcomes
    prompt = scored(outcome, model, context)
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": ""},
        "logprobs": None,
        "finish_reason": "length",
        "stop_reason": None,
    }
    return envelope("chat.completion", "chatcmpl", body.model or model.value) | {
        "choices": [choice],
        "usage": usage(len(prompt.ids)),
        "prompt_logprobs": prompt_logprobs(prompt),
    }


COMPLETIONS = Route(
    path="/v1/completions",
    body=Completion,
    requests=_completion_requests,
    answer=_completion_answer,
    lists=("prompt",),
    summary="Log-probs of prompts under the policy or the reference, echoed; nothing is generated.",
)
CHAT = Route(
    path="/v1/chat/completions",
    body=Chat,
    requests=_chat_requests,
    answer=_chat_answer,
    summary="vLLM's prompt_logprobs of one user and one assistant message; nothing is generated.",
)
ROUTES = (COMPLETIONS, CHAT)
