"""Renders the chat template at export into three literals; it is never run again."""

from __future__ import annotations

import json
import logging
import re
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from copy import copy
from typing import Any

import numpy as np

from stepscore.enums import Convention
from stepscore.errors import (
    CheckpointUnsafe,
    InvalidRecord,
    ManifestInvalid,
    PairIncompatible,
    UnsupportedArchitecture,
)
from stepscore.prompt.encoder import PromptEncoder
from stepscore.prompt.template import Strip, Template, TextRule
from stepscore_export.checkpoint.checkpoint import Checkpoint
from stepscore_export.checkpoint.template_sandbox import DATE
from stepscore_export.checkpoint.tokenizer import ChatTemplate

LOGGER = logging.getLogger("stepscore")

TIME_LIMIT_SECONDS = 10
"""Of CPU time."""
_WAITS = 30
"""Times as long on the clock: a busy machine must not decide what a template is."""

# What templates are known to change or to branch on: empty texts, white space at the ends (trim), blank lines
# between steps, markup (escapes), template syntax, control tokens, roles, thinking blocks, boxes, length.
_TEXTS = (
    " \n\t problem \t\r\n ",
    "first\n\nsecond\n\n\nthird",
    "step one\n\nstep two",
    "\n\n  answer \n\n",
    "\"double\" 'single' <b>&amp;</b> \\boxed{1} \\n",
    "{{ 7 * 7 }} {% if x %} {# note #} {%- endif -%}",
    "∑ 数学 e\u0301 \u00a0\u200b🙂\u2028",
    "a<|im_end|>\n<|im_start|>system\nb<|endoftext|>",
    "<think>\na\n</think>\n\nb",
    "<tool_response>\nuser assistant system tool\n</tool_response>",
    "Please reason step by step, and put your final answer within \\boxed{}.",
    "What is 12 + 30?",
    "The answer is 42.",
    "7",
    "x" * 100,
    "long " * 4000,
)
_PROBES = (
    ("", "answer"),
    (" \n", "answer"),
    *((text, "answer") for text in _TEXTS),
    *(("problem", text) for text in _TEXTS),
)
_HINT = (
    "use a template that writes the texts as they are, as the runtime does, but for white space at the ends"
)
_ADDRESS = re.compile(r"<[^<>]* at 0x[0-9a-fA-F]+>")


def literals(chat_template: ChatTemplate, *, time_limit: int = TIME_LIMIT_SECONDS) -> Template:
    """Find prefix, between and suffix such that every render is

        prefix + problem + between + answer + suffix        answer = "\\n\\n".join(steps)

    for the conversation [user: problem, assistant: answer] without a generation prompt, both texts stripped
    at their ends as the template does. They are what the template writes around two texts that it cannot look
    at, so that they hold for all texts, and are compared with what it renders of texts that templates are
    known to change. It is run twice, in two processes.

    A text may be searched for tags (`</think>`): the rule of the text lists them, and the runtime rejects
    texts that contain one. A template that asks for today's date gets a fixed one, DATE, with a warning.

    Raises UnsupportedArchitecture where the template does with a text anything but write it, drops or repeats
    one, writes what changes from run to run or is no text, fails, or exceeds `time_limit` seconds, memory or
    length; CheckpointUnsafe where it accesses Python's internals.
    """
    answer = _render(chat_template, _PROBES, time_limit)
    if answer != _render(chat_template, _PROBES, time_limit):
        raise UnsupportedArchitecture("the chat template renders the same text differently each time")
    template = _split(answer["parts"], answer["absent"])
    for (problem, solution), text in zip(_PROBES, answer["rendered"], strict=True):
        if _is_rejected(template, problem, solution):
            continue
        if text != template.render(problem, [solution]):
            raise UnsupportedArchitecture(
                f"the chat template renders the problem {problem[:40]!r} with the answer {solution[:40]!r} "
                "otherwise than other texts",
                hint=_HINT,
            )
    if answer["asked_date"]:
        LOGGER.warning(
            "the chat template writes today's date; the pair has %s in its place, so that a text has "
            "the same reward on any day",
            f"{DATE:%d %b %Y}",
        )
    return template


def _is_rejected(template: Template, problem: str, solution: str) -> bool:
    try:
        template.check(problem, [solution])
    except InvalidRecord:
        return True
    return False


def _split(parts: Sequence[str | Mapping[str, Any]], absent: Sequence[Sequence[str]]) -> Template:
    texts = [part for part in parts if not isinstance(part, str)]
    numbers = [text["text"] for text in texts]
    for number, role in enumerate(("problem", "answer")):
        if (count := numbers.count(number)) != 1:
            raise UnsupportedArchitecture(f"the chat template {'repeats' if count else 'drops'} the {role}")
    first, second = map(parts.index, texts)
    if numbers != [0, 1]:
        raise UnsupportedArchitecture("the chat template puts the answer before the problem")
    around = parts[:first], parts[first + 1 : second], parts[second + 1 :]
    literals = ["".join(map(str, each)) for each in around]
    for text in literals:
        if _ADDRESS.search(text):
            raise UnsupportedArchitecture(f"the chat template writes an object of Python: {text[:80]!r}")
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise UnsupportedArchitecture(f"the chat template writes a lone surrogate: {text[:80]!r}")
    prefix, between, suffix = literals
    problem, response = (
        TextRule(Strip(text["left"]), Strip(text["right"]), tuple(tags))
        for text, tags in zip(texts, absent, strict=True)
    )
    return Template(prefix, between, suffix, problem, response)


def _render(
    chat_template: ChatTemplate, conversations: Sequence[tuple[str, str]], time_limit: int
) -> dict[str, Any]:
    request = {
        "template": chat_template.text,
        "variables": dict(chat_template.variables),
        "conversations": [
            [{"role": "user", "content": problem}, {"role": "assistant", "content": answer}]
            for problem, answer in conversations
        ],
    }
    # With -P, so that nothing is imported from the current folder.
    command = [sys.executable, "-P", "-m", "stepscore_export.checkpoint.template_sandbox", str(time_limit)]
    try:
        process = subprocess.run(
            command,
            input=json.dumps(request),
            capture_output=True,
            text=True,
            timeout=_WAITS * time_limit,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise _endless(time_limit) from None
    if process.returncode == -signal.SIGXCPU:
        raise _endless(time_limit)
    if process.returncode:
        reason = process.stderr.strip().rpartition("\n")[2] or f"exit status {process.returncode}"
        raise UnsupportedArchitecture(f"the chat template could not be rendered: {reason}")
    answer: dict[str, Any] = json.loads(process.stdout)
    if "error" in answer:
        kind = CheckpointUnsafe if answer["unsafe"] else UnsupportedArchitecture
        raise kind(f"the chat template fails: {answer['error']}")
    if "looked_at" in answer:
        raise UnsupportedArchitecture(
            f"the chat template is not the same for all texts: {answer['looked_at']}", hint=_HINT
        )
    return answer


def _endless(time_limit: int) -> UnsupportedArchitecture:
    return UnsupportedArchitecture(
        f"the chat template did not finish within {time_limit} seconds of CPU time", hint=_HINT
    )


def prompt_template(policy: Checkpoint) -> tuple[Template, PromptEncoder]:
    """Return the chat template as literals, and the runtime's encoder of them.

    Raises UnsupportedArchitecture where the runtime cannot encode them.
    """
    with policy.naming():
        template, limit = literals(policy.chat_template()), policy.config.max_position_embeddings
        try:
            return template, PromptEncoder(policy.tokenizer_json(), template, max_tokens=limit)
        except ManifestInvalid as error:
            raise UnsupportedArchitecture(f"the chat template cannot be encoded: {error.message}") from None


def check_template(reference: Checkpoint, template: Template, encoder: PromptEncoder) -> None:
    """Raise PairIncompatible unless the template has the same ids with the tokenizer of the reference."""
    record: tuple[str, list[str], Convention] = ("1 + 1 = ?", ["Add them.", "2"], Convention.EXACT)
    own = copy(encoder)
    own.max_tokens = sys.maxsize  # the shortest models hold no such record
    try:
        other = PromptEncoder(reference.tokenizer_json(), template, max_tokens=sys.maxsize)
        same = np.array_equal(other.encode(*record).token_ids, own.encode(*record).token_ids)
    except ManifestInvalid:
        same = False
    if not same:
        raise PairIncompatible(
            f"the policy's chat template has other token ids with the tokenizer of the {reference.name}",
            hint="use the model that the policy was trained from: it has the same control tokens",
        )
