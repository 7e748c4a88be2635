"""Read a problem and its solution from rendered prompts and from messages, as reward clients send them.

A client has applied a chat template already, or sends messages. Only the template of the pair is read: the
reward then equals that of the same problem and steps in any other call, and no control token of another
template is scored as if it were text.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import msgspec

from stepscore.errors import InvalidRecord, NoSteps, UnknownModel
from stepscore.prompt.template import SEPARATOR, split_steps
from stepscore.records import Record
from stepscore.results import Result
from stepscore.server.routes import Context, Outcome

_FOREIGN = re.compile(r"<[|｜][^<>|｜\s]{1,40}[|｜]>")
"""Control tokens as most templates spell them, to notice one that is not the pair's."""
_SHOWN_CHARS = 60


class Message(msgspec.Struct, frozen=True, kw_only=True):
    """A turn of a conversation; of content parts, one text is read."""

    role: str
    content: str | list[dict[str, Any]]
    tool_calls: list[Any] | None = None
    reasoning_content: str | None = None


def check_model(name: str | None, context: Context) -> None:
    """Raise UnknownModel for a name that the pair is not served under; none stands for the pair."""
    known = (context.name, *context.aliases)
    if name is not None and name not in known:
        raise UnknownModel(
            f"model {shown(name)} is not served; the pair is {', '.join(known)}",
            hint="add the name with --served-model-name",
        )


def conversation(messages: list[Message], context: Context) -> tuple[str, str]:
    """Return the texts of one user and one assistant message; raise InvalidRecord for other conversations.

    A system message before them must be the one of the pair's chat template, which adds its own.
    """
    texts = [_content(f"messages[{place}]", message) for place, message in enumerate(messages)]
    roles = [message.role for message in messages]
    if roles[:1] == ["system"]:
        _check_system(texts[0], context)
        roles, texts = roles[1:], texts[1:]
    if roles != ["user", "assistant"]:
        raise InvalidRecord(
            f"messages must be one user and one assistant message, not {', '.join(roles)[:100] or 'none'}",
            hint="send a longer conversation as token ids",
        )
    return texts[0], texts[1]


def problem_of(prompt: str, context: Context) -> str:
    """Return the problem of a prompt: a render of the pair's template up to the response, or plain text.

    Raises InvalidRecord for a prompt that holds control tokens and is no such render.
    """
    template = context.encoder.template
    if prompt.startswith(template.prefix) and prompt.endswith(template.between):
        problem = prompt[len(template.prefix) : len(prompt) - len(template.between)]
        if not _control_tokens(problem, context):
            return problem
    found = _control_tokens(prompt, context)
    if found:
        raise InvalidRecord(
            f"the prompt holds the control token {found[0]} and is not the pair's chat template with one "
            f"user message: it begins with {shown(prompt)}, the template with {shown(template.prefix)}",
            hint="apply the chat template of the pair to one user message, or send the problem as plain text",
        )
    return prompt


def split_render(text: str, context: Context) -> tuple[str, str]:
    """Return the problem of a whole render of the pair's template, and all that follows it.

    Raises InvalidRecord for another text.
    """
    between = context.encoder.template.between
    prompt, found, response = text.partition(between)
    if not found or not text.startswith(context.encoder.template.prefix):
        raise InvalidRecord(
            f"the text is not a render of the pair's chat template: it begins with {shown(text)}, the "
            f"template with {shown(context.encoder.template.prefix)}",
            hint="apply the chat template of the pair to one user and one assistant message",
        )
    return problem_of(prompt + found, context), response


def without_end(response: str, context: Context) -> tuple[str, bool]:
    """Return a response without the end of its turn, and whether it had one.

    The end is the template's suffix, with or without white space at its end.
    """
    suffix = context.encoder.template.suffix
    for end in (suffix, suffix.rstrip()):
        if end and response.endswith(end):
            return response[: -len(end)], True
    return response, False


def solution(problem: str, response: str, context: Context, *, ended: bool | None = None) -> Record:
    """Return the record of a response, split at blank lines (see `split_steps`).

    A response that has not `ended` is a partial one: its last step is scored where its text ends, without an
    end of turn. None: nothing says so, and one that ends in a blank line is partial, as for `RewardModel`.
    Raises NoSteps for white space; InvalidRecord for a control token, where another turn would begin.
    """
    check_turn("the response", response, context)
    steps, blank = split_steps(response)
    if not steps:
        raise NoSteps(f"the response is {'white space' if response else 'empty'}: nothing to score")
    if blank and ended:
        steps = (*steps[:-1], steps[-1] + SEPARATOR)
    return Record(problem, steps, unfinished=blank if ended is None else not ended)


def check_turn(name: str, text: str, context: Context) -> None:
    """Raise InvalidRecord for a control token within a turn, with the name of the turn."""
    found = _control_tokens(text, context)
    if found:
        raise InvalidRecord(
            f"{name} holds the control token {found[0]}, which begins or ends a turn",
            hint="send one user and one assistant turn; a longer conversation can be sent as token ids",
        )


def results(outcomes: list[Outcome]) -> list[Result]:
    """Return the outcomes of a call whose items are all records of text and have no error."""
    assert all(isinstance(outcome, Result) for outcome in outcomes)
    return [outcome for outcome in outcomes if isinstance(outcome, Result)]


def refuse(given: Mapping[str, object], why: str) -> None:
    """Raise InvalidRecord for the first of these fields that is set: leaving it out would change numbers."""
    for name, value in given.items():
        if value:
            raise InvalidRecord(f"`{name}` is not supported: {why}", hint=f"leave `{name}` out")


def shown(text: str) -> str:
    """Return a text as an error shows it: quoted, and cut."""
    return repr(text) if len(text) <= _SHOWN_CHARS else f"{text[:_SHOWN_CHARS]!r}..."


def _control_tokens(text: str, context: Context) -> list[str]:
    return context.encoder.control_tokens(text) or _FOREIGN.findall(text)


def _check_system(text: str, context: Context) -> None:
    own = context.encoder.system_message()
    if text != own:
        has = "has none" if own is None else f"has {shown(own)}"
        raise InvalidRecord(
            f"the system message {shown(text)} differs from the pair's chat template, which {has}",
            hint="omit it: the template adds its own",
        )


def _content(name: str, message: Message) -> str:
    refuse(
        {f"{name}.tool_calls": message.tool_calls, f"{name}.reasoning_content": message.reasoning_content},
        "only role and content are scored",
    )
    match message.content:
        case str(text) | [{"type": "text", "text": str(text)}]:
            return text
    raise InvalidRecord(f"`{name}.content` must be a string or a list of one text part")
