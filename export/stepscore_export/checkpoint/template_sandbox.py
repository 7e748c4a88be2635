"""A program run in a separate process: renders an untrusted chat template as transformers would.

    python -P -m stepscore_export.checkpoint.template_sandbox SECONDS

    {template, variables, conversations} on stdin, as JSON
    -> {rendered: [str], parts: [str or part], absent: [[str], [str]], asked_date} or {looked_at}
       or {error, unsafe} on stdout

`parts` is what it writes for every problem (0) and answer (1), of which it cannot see the text: a part is
{text: 0 or 1, left, right}, with what is stripped off its ends. `absent` are the tags that problem and answer
do not contain, else it writes something else. Today's date is DATE; `asked_date` tells whether it is used.

The process enforces the limits: Jinja's sandbox stops code, but not endless loops or huge strings.
"""

from __future__ import annotations

import json
import math
import sys
import time
import traceback
from datetime import datetime
from typing import Any, NoReturn, TypeVar

import jinja2
import jinja2.exceptions
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox

from stepscore_export.checkpoint.opaque_text import (
    LookedAt,
    OpaqueEnvironment,
    OpaqueText,
    Parts,
    Unknown,
    Written,
)

MAX_MEMORY_BYTES = 1 << 30
MAX_CHARACTERS = 1 << 20
DATE = datetime(2024, 7, 26)
"""What a template that asks for today's date is told: the date that Llama 3.1 and 3.2 have by default."""


class _GenerationBlock(jinja2.ext.Extension):
    """`{% generation %}` marks the assistant's text for training; its content is rendered unchanged."""

    tags = {"generation"}  # noqa: RUF012 - how Jinja declares it

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.Scope(body).set_lineno(line)


_Environment = TypeVar("_Environment", bound=jinja2.sandbox.SandboxedEnvironment)

_ROLES = ("user", "assistant")
_NOTHING = {"tools": None, "documents": None, "add_generation_prompt": False}


class Clock:
    """`strftime_now`, at DATE: with the date of the day, a text would score differently tomorrow."""

    def __init__(self) -> None:
        self.asked = False

    def __call__(self, form: str) -> str:
        """Return DATE in a format of strftime."""
        self.asked = True
        return DATE.strftime(form)


def render(
    template: str,
    variables: dict[str, Any],
    conversations: list[list[dict[str, str]]],
    clock: Clock | None = None,
) -> list[str]:
    """Render every conversation with the environment that transformers gives to a chat template."""
    environment = _environment(jinja2.sandbox.ImmutableSandboxedEnvironment, clock or Clock())
    compiled = environment.from_string(template)
    rendered = []
    for messages in conversations:
        text = compiled.render(**_NOTHING, **variables, messages=messages)
        if len(text) > MAX_CHARACTERS:
            raise jinja2.TemplateError(f"it renders more than {MAX_CHARACTERS} characters")
        rendered.append(text)
    return rendered


def trace(template: str, variables: dict[str, Any], texts: tuple[Unknown, Unknown] | None = None) -> Parts:
    """Return what the template writes around every problem (0) and answer (1); LookedAt if it differs."""
    environment = _environment(OpaqueEnvironment, Clock())
    environment.guard()
    contents = [OpaqueText((Written(text),)) for text in texts or (Unknown(0), Unknown(1))]
    messages = [{"role": role, "content": text} for role, text in zip(_ROLES, contents, strict=True)]
    try:
        return environment.parts_of(template, **_NOTHING, **variables, messages=messages)
    except jinja2.exceptions.SecurityError:
        raise
    except Exception as error:  # it rendered strings, so it is these texts that it fails on
        what = str(error) if isinstance(error, LookedAt) else f"does more than write a text ({error})"
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename == "<template>"]
        raise LookedAt(f"in line {lines[-1]} it {what}" if lines else f"it {what}") from error


def _environment(kind: type[_Environment], clock: Clock) -> _Environment:
    environment = kind(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlock, jinja2.ext.loopcontrols]
    )
    environment.filters |= {"tojson": _tojson, "random": _random}
    environment.globals |= {
        "raise_exception": _raise_exception,
        "strftime_now": clock,
        "lipsum": _random,
    }
    return environment


def _tojson(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _random(*_: object) -> NoReturn:
    raise jinja2.TemplateError("it draws at random, so the same text would score differently each time")


def _limit(seconds: int) -> None:
    """Limit memory, and CPU time from now on: a busy machine makes a template late, not endless."""
    try:
        import resource  # noqa: PLC0415 - missing on Windows, where only the caller's time limit applies

        resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY_BYTES, MAX_MEMORY_BYTES))
        end = math.ceil(time.process_time()) + seconds
        resource.setrlimit(resource.RLIMIT_CPU, (end, end + 1))
    except (ImportError, ValueError, OSError):
        pass


def _printable(error: Exception) -> str:
    """Return a message without lone surrogates, which no terminal takes."""
    return str(error)[:500].encode(errors="backslashreplace").decode()


def _answered(part: str | Written) -> str | dict[str, Any]:
    if isinstance(part, str):
        return part
    return {"text": part.text.number, "left": part.left, "right": part.right}


def main() -> None:
    """Read one request from stdin and answer it on stdout."""
    _limit(int(sys.argv[1]))
    answer: dict[str, Any]
    try:
        request = json.load(sys.stdin)
        clock, texts = Clock(), (Unknown(0), Unknown(1))
        rendered = render(**request, clock=clock)
        parts = [_answered(part) for part in trace(request["template"], request["variables"], texts)]
        absent = [text.absent for text in texts]
        answer = {"rendered": rendered, "parts": parts, "absent": absent, "asked_date": clock.asked}
    except LookedAt as error:
        answer = {"looked_at": _printable(error)}
    except Exception as error:  # a template can raise anything
        unsafe = isinstance(error, jinja2.exceptions.SecurityError)
        answer = {"error": f"{type(error).__name__}: {_printable(error)}", "unsafe": unsafe}
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    main()
