"""A script run in a separate process: renders an untrusted chat template as transformers would.

    {template, variables, conversations} on stdin -> {rendered: [str]} or {error, unsafe} on stdout, as JSON

The process enforces the limits: Jinja's sandbox stops code, but not endless loops or huge strings.
"""

from __future__ import annotations

import json
import sys
from typing import Any, NoReturn

import jinja2
import jinja2.exceptions
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox

MAX_MEMORY_BYTES = 1 << 30
MAX_CHARACTERS = 1 << 20


class _GenerationBlock(jinja2.ext.Extension):
    """`{% generation %}` marks the assistant's text for training; its content is rendered unchanged."""

    tags = {"generation"}  # noqa: RUF012 - how Jinja declares it

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.Scope(body).set_lineno(line)


def render(template: str, variables: dict[str, Any], conversations: list[list[dict[str, str]]]) -> list[str]:
    """Render every conversation with the environment that transformers gives to a chat template."""
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlock, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals |= {"raise_exception": _raise_exception, "strftime_now": _strftime_now}
    compiled = environment.from_string(template)
    nothing = {"tools": None, "documents": None, "add_generation_prompt": False}
    rendered = []
    for messages in conversations:
        text = compiled.render(**nothing, **variables, messages=messages)
        if len(text) > MAX_CHARACTERS:
            raise jinja2.TemplateError(f"it renders more than {MAX_CHARACTERS} characters")
        rendered.append(text)
    return rendered


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


def _strftime_now(_format: str) -> NoReturn:
    raise jinja2.TemplateError("it renders today's date, so the same text would score differently tomorrow")


def _limit_memory() -> None:
    try:
        import resource  # noqa: PLC0415 - missing on Windows, where only the time limit applies

        resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY_BYTES, MAX_MEMORY_BYTES))
    except (ImportError, ValueError, OSError):
        pass


def main() -> None:
    """Read one request from stdin and answer it on stdout."""
    _limit_memory()
    answer: dict[str, Any]
    try:
        answer = {"rendered": render(**json.load(sys.stdin))}
    except Exception as error:  # a template can raise anything
        unsafe = isinstance(error, jinja2.exceptions.SecurityError)
        answer = {"error": f"{type(error).__name__}: {error}"[:500], "unsafe": unsafe}
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    main()
