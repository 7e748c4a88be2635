"""--json: one object a command, on stdout.

Where stdout carries data, and for an error, the object is the last line of stderr.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from stepscore.cli.streams import print_data

if TYPE_CHECKING:
    from stepscore.cli.results import CommandResult

ASKED, ARGUMENTS = "stepscore.json", "stepscore.arguments"
"""Keys of a context's `meta`: whether this run prints JSON, and the command line."""
JSON = "--json"


def asks_for_json(arguments: Sequence[str]) -> bool:
    """Return whether a command line asks for JSON, even one that cannot be parsed.

    >>> asks_for_json(["score", "--json"]), asks_for_json(["bench", "PAIR", "--format=json"])
    (True, True)
    >>> asks_for_json(["score", "--problem", "2", "--", "--json"])
    False
    """
    options = list(arguments)
    if "--" in options:
        del options[options.index("--") :]
    follows = any(pair == ("--format", "json") for pair in itertools.pairwise(options))
    return JSON in options or "--format=json" in options or follows


def print_result(result: CommandResult, *, data_on_stdout: bool = False) -> None:
    """Print a result as one line: on stdout, or on stderr where stdout carries data."""
    import msgspec

    text = msgspec.json.encode(result) + b"\n"
    if data_on_stdout:
        print_on_stderr(text)
    else:
        print_data(text)


def print_failure(command: str | None, code: str, message: str, hint: str | None) -> None:
    """Print an error as the last line of stderr."""
    import msgspec

    from stepscore.cli.results import Failure, Fault

    failure = Failure(command=command, error=Fault(code, message, hint))
    print_on_stderr(msgspec.json.encode(failure) + b"\n")


def print_on_stderr(text: bytes) -> None:
    """Print JSON text on stderr; no control character of it acts on a terminal."""
    from stepscore.visible import printable_json

    click.echo(printable_json(text), file=getattr(sys.stderr, "buffer", sys.stderr), nl=False)
