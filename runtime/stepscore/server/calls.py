"""One call of a scoring route: body -> requests -> outcomes -> answer."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, TypeVar

import msgspec
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.types import Receive

from stepscore.errors import DeadlineExceeded, InputError, RunFailed, ScorerClosed, StepscoreError, TooLarge
from stepscore.records import TokenRecord
from stepscore.results import Result, TokenResult
from stepscore.scheduling.async_scorer import AsyncScorer
from stepscore.scheduling.requests import Request
from stepscore.server.body import BodyReader, decode
from stepscore.server.envelope import CALL, Call
from stepscore.server.refusals import ClientGone, Refused
from stepscore.server.routes import Context, Outcome, Route
from stepscore.server.settings import Settings

TIMEOUT_HEADER = "x-request-timeout"
LARGE_BYTES = 64 << 10
"""Bodies above this size are decoded, and their answers encoded, in a thread: the event loop goes on."""
WHOLE_CALL = (DeadlineExceeded, RunFailed, ScorerClosed)
"""Errors that are the answer to a call where every item has the same one."""

T = TypeVar("T")


class Calls:
    """Answers the calls of scoring routes with one scorer."""

    def __init__(
        self, scorer: AsyncScorer, context: Context, settings: Settings, is_draining: Callable[[], bool]
    ) -> None:
        self._scorer = scorer
        self._context = context
        self._settings = settings
        self._is_draining = is_draining
        self._reader = BodyReader(settings.max_body_bytes)

    def endpoint(self, route: Route[Any]) -> Callable[[HttpRequest], Awaitable[Response]]:
        """Return the endpoint of a route."""

        async def endpoint(request: HttpRequest) -> Response:
            return await self._answer(route, request)

        return endpoint

    async def _answer(self, route: Route[Any], http: HttpRequest) -> Response:
        if self._is_draining():
            raise ScorerClosed("the server is shutting down", hint="send the call again, to another server")
        call: Call = http.scope[CALL]
        header = _header_timeout(http)
        data = await self._reader.read(http)
        body, requests = await _aside(len(data), self._read, route, data)
        call.items = len(requests)
        given = getattr(body, "timeout", None)
        timeout = self._settings.timeout if given is header is None else header if given is None else given
        if timeout is not None:
            timeout -= call.seconds
            if timeout <= 0:
                raise DeadlineExceeded("the deadline passed before the call was read")
        scored = await _unless_gone(http.receive, self._scorer.call(requests, timeout=timeout))
        outcomes = scored.done.result()
        call.computed_tokens, call.queue_seconds = scored.computed_tokens, scored.queue_seconds
        call.tokens = sum(map(_num_tokens, requests, outcomes))
        _raise_whole(outcomes, item_errors=route.item_errors)
        content = await _aside(len(data), self._encoded, route, body, outcomes)
        return Response(content, media_type="application/json")

    def _read(self, route: Route[Any], data: bytes) -> tuple[Any, list[Request | InputError]]:
        body = decode(data, route.body)
        self._check_items(_num_listed(body, route.lists))  # before each of them takes time and memory
        requests = route.requests(body, self._context)
        self._check_items(len(requests))
        if not route.item_errors:
            _raise_first(requests)
        return body, requests

    def _check_items(self, count: int) -> None:
        if count > self._settings.max_items:
            raise TooLarge(
                f"the call has {count} items, more than {self._settings.max_items}",
                hint="send several calls, or start the server with a larger --max-items",
            )

    def _encoded(self, route: Route[Any], body: Any, outcomes: list[Outcome]) -> bytes:
        return msgspec.json.encode(route.answer(body, outcomes, self._context))


async def _aside(num_bytes: int, function: Callable[..., T], *arguments: Any) -> T:
    """Return the result of a function, called in a thread where there is much to do."""
    if num_bytes <= LARGE_BYTES:
        return function(*arguments)
    return await asyncio.to_thread(function, *arguments)


def _num_listed(body: object, lists: Sequence[str]) -> int:
    """Return the number of items in the longest of these fields; a list of token ids is one item."""
    values = (getattr(body, name) for name in lists)
    given = (value for value in values if isinstance(value, list) and value)
    return max((1 if isinstance(value[0], int) else len(value) for value in given), default=0)


async def _unless_gone(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """Return the result of a coroutine; cancel it and raise ClientGone where the client leaves before."""
    task, gone = asyncio.create_task(work), asyncio.create_task(_disconnected(receive))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGone
        return task.result()
    finally:
        for each in (task, gone):
            each.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _raise_first(items: Sequence[object]) -> None:
    """Raise the first error, named by its position where there are several items."""
    for position, item in enumerate(items):
        if isinstance(item, StepscoreError):
            if len(items) > 1:
                raise type(item)(f"item {position}: {item.message}", hint=item.hint)
            raise item


def _raise_whole(outcomes: list[Outcome], *, item_errors: bool) -> None:
    """Raise the error that is the answer to the whole call, if there is one."""
    if not item_errors:
        _raise_first(outcomes)
    first = outcomes[0] if outcomes else None
    if isinstance(first, WHOLE_CALL) and all(type(each) is type(first) for each in outcomes):
        raise first


def _num_tokens(request: Request | InputError, outcome: Outcome) -> int:
    if isinstance(outcome, Result):
        return outcome.num_tokens
    if isinstance(outcome, TokenResult) and isinstance(request, Request):
        assert isinstance(request.item, TokenRecord)
        return len(request.item.prompt_token_ids) + len(request.item.response_token_ids)
    return 0


def _header_timeout(request: HttpRequest) -> float | None:
    """Return the seconds of X-Request-Timeout; raise Refused for anything but a positive number."""
    text = request.headers.get(TIMEOUT_HEADER)
    if text is None:
        return None
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise Refused(400, "invalid_record", "X-Request-Timeout must be a number of seconds above 0")
    return seconds
