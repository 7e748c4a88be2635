"""The server's application in this process, and calls of it, over a real or a scripted scorer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import Future
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any, cast

import httpx
from starlette.applications import Starlette

from stepscore.enums import Convention
from stepscore.errors import InputError
from stepscore.results import Result
from stepscore.scheduling.async_scorer import AsyncScorer
from stepscore.scheduling.requests import Request
from stepscore.scheduling.scheduler import Snapshot
from stepscore.server.app import build_app
from stepscore.server.metrics import Metrics
from stepscore.server.routes import Context, Outcome
from stepscore.server.settings import Settings

CONTEXT = Context("tiny", ("alias",), 0.5, Convention.CARD, "f" * 64, "1.2.3", cast(Any, None), 100, 64)
RESULT = Result(
    cumulative_rewards=[0.5, 0.25],
    step_rewards=[0.5, -0.25],
    outcome_reward=0.25,
    num_tokens=7,
    response_start=3,
    first_summed=0,
    step_ends=[3, 5],
)
COMPUTED_TOKENS = 5
ITEM = {"problem": "secret problem", "steps": ["secret step"]}
JSON = {"content-type": "application/json"}
DEFAULTS = Settings()


class ScriptedScorer:
    """Answers every request with `answer`, or as a function says; notes what it was asked, and cancelling."""

    def __init__(
        self, answer: Outcome | Exception | Callable[[Sequence[Any]], Awaitable[list[Outcome]]] = RESULT
    ) -> None:
        self.answer = answer
        self.asked: list[Sequence[Request | InputError]] = []
        self.timeouts: list[float | None] = []
        self.cancelled = 0
        self.scheduler = self
        self.observer: Any = None
        self.scorer = SimpleNamespace(kept_prefixes=None)

    async def call(
        self, requests: Sequence[Request | InputError], *, timeout: float | None = None
    ) -> SimpleNamespace:
        done: Future[list[Outcome]] = Future()
        done.set_result(await self._outcomes(requests, timeout))
        return SimpleNamespace(done=done, computed_tokens=COMPUTED_TOKENS, queue_seconds=0.25)

    async def _outcomes(
        self, requests: Sequence[Request | InputError], timeout: float | None
    ) -> list[Outcome]:
        self.asked.append(requests)
        self.timeouts.append(timeout)
        try:
            if callable(self.answer):
                return await self.answer(requests)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        answer = cast(Outcome, self.answer)
        return [each if isinstance(each, InputError) else answer for each in requests]

    def snapshot(self) -> Snapshot:
        return Snapshot(1, 20, 3, 40, None, False)


def app_of(
    scorer: AsyncScorer | ScriptedScorer,
    settings: Settings = DEFAULTS,
    context: Context = CONTEXT,
    **more: Any,
) -> Starlette:
    """Return the application of a scorer."""
    more = {"is_draining": lambda: False, "metrics": Metrics(context)} | more
    return build_app(cast(AsyncScorer, scorer), context, settings, **more)


@asynccontextmanager
async def client_of(app: Starlette, **options: Any) -> AsyncIterator[httpx.AsyncClient]:
    """Yield a client of an application."""
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://server", **options) as client:
        yield client


def call(app: Starlette, method: str, path: str, **options: Any) -> httpx.Response:
    """Return the response to one call."""

    async def answer() -> httpx.Response:
        async with client_of(app) as client:
            return await client.request(method, path, **options)

    return asyncio.run(answer())


def score(
    app: Starlette, *items: object, headers: dict[str, str] | None = None, **fields: Any
) -> httpx.Response:
    """Return the response to a native call with these items."""
    body = {"items": list(items), **fields}
    return call(app, "POST", "/v1/score", json=body, headers=headers)
