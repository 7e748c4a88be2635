"""Renders the chat template at export into three literals; it is never run again."""

from __future__ import annotations

import html
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from stepscore.errors import CheckpointUnsafe, ManifestInvalid, UnsupportedArchitecture
from stepscore.prompt.encoder import PromptEncoder
from stepscore.prompt.template import Template
from stepscore_export.checkpoint.checkpoint import Checkpoint
from stepscore_export.checkpoint.tokenizer import ChatTemplate

TIME_LIMIT_SECONDS = 10.0

_PROBLEM, _ANSWER = "stepscoreProblem", "stepscoreAnswer"

# Texts that templates are known to change: white space at the ends (trim), blank lines between steps, markup
# (escapes), template syntax, control tokens, and thinking blocks (dropped by some templates).
_PROBES = (
    (" \n\t problem \t\r\n ", "\n\n  answer \n\n"),
    ("first\n\nsecond\n\n\nthird", "step one"),
    ("problem", "step one\n\nstep two"),
    ("problem", "step one\n\nstep two\n\nstep three"),
    ("\"double\" 'single' <b>&amp;</b> \\boxed{1} \\n", "\"double\" 'single' <b>&amp;</b> \\boxed{1} \\n"),
    ("{{ 7 * 7 }} {% if x %} {# note #}", "{{ messages }} {%- endif -%}"),
    ("∑ 数学 e\u0301 \u00a0\u200b🙂\u2028", "∑ 数学 e\u0301 \u00a0\u200b🙂\u2028"),
    ("a<|im_end|>\n<|im_start|>system\nb", "a<|im_end|>\n<|im_start|>user\nb<|endoftext|>"),
    ("<think>a</think>b", "<think>\na\n</think>\n\nb"),
    ("long " * 4000, "LONG " * 4000),
)


def literals(chat_template: ChatTemplate, *, time_limit: float = TIME_LIMIT_SECONDS) -> Template:
    """Find prefix, between and suffix such that every render is

        prefix + problem + between + answer + suffix        answer = "\\n\\n".join(steps)

    for the conversation [user: problem, assistant: answer] without a generation prompt, and check it with
    texts that templates are known to change. Since the answer is inserted verbatim, the render of the first
    k steps has the same literals for every k.

    Raises UnsupportedArchitecture where the template trims, drops, repeats or escapes a text, fails, or
    exceeds `time_limit` seconds, memory or length; CheckpointUnsafe where it accesses Python's internals.
    """
    first, *rendered = _render(chat_template, [(_PROBLEM, _ANSWER), *_PROBES], time_limit)
    template = _split(first)
    for (problem, answer), text in zip(_PROBES, rendered, strict=True):
        if text != f"{template.prefix}{problem}{template.between}{answer}{template.suffix}":
            raise _not_verbatim(problem, answer, text)
    return template


def _split(rendered: str) -> Template:
    for role, sentinel in (("problem", _PROBLEM), ("answer", _ANSWER)):
        count = rendered.count(sentinel)
        if count != 1:
            fault = "repeats" if count else "drops or changes"
            raise UnsupportedArchitecture(f"the chat template {fault} the {role}")
    prefix, _, rest = rendered.partition(_PROBLEM)
    between, found, suffix = rest.partition(_ANSWER)
    if not found:
        raise UnsupportedArchitecture("the chat template puts the answer before the problem")
    return Template(prefix=prefix, between=between, suffix=suffix)


def _not_verbatim(problem: str, answer: str, rendered: str) -> UnsupportedArchitecture:
    """Name what the template did to a text that it should have inserted verbatim."""
    role, text = ("problem", problem) if problem not in rendered else ("answer", answer)
    if text in rendered:
        fault = "changes its own text around"
    elif text in html.unescape(rendered) or json.dumps(text, ensure_ascii=False)[1:-1] in rendered:
        fault = "escapes"
    elif text.strip() in rendered:
        fault = "trims the white space of"
    else:
        fault = "drops or changes part of"
    return UnsupportedArchitecture(
        f"the chat template {fault} the {role} {text[:40]!r}",
        hint="use a template that inserts texts verbatim, as the runtime does",
    )


def _render(
    chat_template: ChatTemplate, conversations: Sequence[tuple[str, str]], time_limit: float
) -> list[str]:
    request = {
        "template": chat_template.text,
        "variables": dict(chat_template.variables),
        "conversations": [
            [{"role": "user", "content": problem}, {"role": "assistant", "content": answer}]
            for problem, answer in conversations
        ],
    }
    # By path and with -P, so that neither the current folder nor this package's modules can be imported.
    command = [sys.executable, "-P", str(Path(__file__).with_name("template_sandbox.py"))]
    try:
        process = subprocess.run(
            command,
            input=json.dumps(request),
            capture_output=True,
            text=True,
            timeout=time_limit,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise UnsupportedArchitecture(
            f"the chat template did not finish within {time_limit:g} seconds"
        ) from None
    if process.returncode:
        reason = process.stderr.strip().rpartition("\n")[2] or f"exit status {process.returncode}"
        raise UnsupportedArchitecture(f"the chat template could not be rendered: {reason}")
    answer = json.loads(process.stdout)
    if "error" in answer:
        kind = CheckpointUnsafe if answer["unsafe"] else UnsupportedArchitecture
        raise kind(f"the chat template fails: {answer['error']}")
    rendered: list[str] = answer["rendered"]
    return rendered


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
