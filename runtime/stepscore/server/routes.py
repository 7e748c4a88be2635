"""Routes of the server as data: a path, the struct of its body, and two pure functions.

The app reads and checks the body, schedules the requests and maps errors to statuses; a protocol only
translates. All routes stand in server/table.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from stepscore.enums import Convention
from stepscore.errors import InputError, StepscoreError
from stepscore.prompt.encoder import PromptEncoder
from stepscore.results import Result, TokenResult
from stepscore.scheduling.requests import Request

Body = TypeVar("Body")
Outcome = Result | TokenResult | StepscoreError
"""Answer to one request: a result, or the error of this item alone."""


@dataclass(frozen=True, slots=True)
class Context:
    """Facts of the served pair that a protocol may need."""

    name: str
    """Model name that answers carry: the first --served-model-name, else the name of the pair's folder."""
    aliases: tuple[str, ...]
    """Other names under which the pair is served."""
    beta: float
    convention: Convention
    fingerprint: str
    version: str
    encoder: PromptEncoder
    vocab_size: int
    max_tokens: int


@dataclass(frozen=True, slots=True)
class Route(Generic[Body]):
    """A POST route: `requests` reads a body of struct `body`, `answer` writes the JSON-ready reply.

    `requests` gives one request or error per item; it may raise an InputError about the whole body. Without
    `item_errors` the first error of an item is the reply to the call, so `answer` sees results only.
    `lists` names the fields that hold one item per entry, so that too many are refused before they are read.
    """

    path: str
    body: type[Body]
    requests: Callable[[Body, Context], list[Request | InputError]]
    answer: Callable[[Body, list[Outcome], Context], object]
    item_errors: bool = False
    lists: tuple[str, ...] = ()
    summary: str = ""
