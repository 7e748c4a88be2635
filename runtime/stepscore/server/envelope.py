"""Around every call: request id, key, timing headers, errors as JSON, one log line and its figures."""

from __future__ import annotations

import logging
import re
import time
import traceback
import uuid
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from stepscore.errors import ArtifactError, StepscoreError
from stepscore.server.keys import is_authorized
from stepscore.server.refusals import CLIENT_GONE, ClientGone, Refused, unauthorized
from stepscore.server.settings import Settings

CALL = "stepscore.call"
"""Key of the Call in an ASGI scope."""
PUBLIC_PATHS = frozenset({"/health", "/ready", "/docs", "/openapi.json"})
"""Paths that need no key."""
PROBES = frozenset({"/health", "/ready", "/metrics"})
"""Paths that monitoring asks for all the time: logged only where they fail."""
UNKNOWN = "unknown"
REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")

log = logging.getLogger("stepscore.server")


@dataclass(slots=True)
class Call:
    """Facts of one call for its log line, its headers and metrics; none of them is text of a request."""

    request_id: str
    method: str
    route: str
    started: float = field(default_factory=time.monotonic)
    status: int = 0
    items: int = 0
    tokens: int = 0
    computed_tokens: int = 0
    queue_seconds: float = 0.0
    error: str | None = None

    @property
    def seconds(self) -> float:
        """Return the time since the call arrived."""
        return time.monotonic() - self.started

    def fields(self) -> dict[str, object]:
        """Return the fields of the log line."""
        fields: dict[str, object] = {
            "request_id": self.request_id,
            "method": self.method,
            "route": self.route,
            "status": self.status,
            "items": self.items,
            "tokens": self.tokens,
            "computed_tokens": self.computed_tokens,
            "queue_milliseconds": round(1000 * self.queue_seconds, 1),
            "milliseconds": round(1000 * self.seconds, 1),
        }
        return fields if self.error is None else fields | {"error": self.error}


OpenSpan = Callable[[Call, Headers], AbstractContextManager[None]]


class Envelope:
    """ASGI middleware around all routes; `span` opens the trace span of a call."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        settings: Settings,
        paths: frozenset[str],
        is_draining: Callable[[], bool],
        observe: Callable[[Call], None],
        span: OpenSpan,
    ) -> None:
        self._app = app
        self._settings = settings
        self._paths = paths
        self._is_draining = is_draining
        self._observe = observe
        self._span = span

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a call."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        path = scope["path"]
        call = Call(_request_id(headers), scope["method"], path if path in self._paths else UNKNOWN)
        scope[CALL] = call

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                call.status = message["status"]
                self._add_headers(MutableHeaders(scope=message), call)
            await send(message)

        try:
            with self._span(call, headers):
                await self._run(scope, receive, send_with_headers, call, headers)
        finally:
            call.status = call.status or CLIENT_GONE
            self._observe(call)
            if call.route not in PROBES or call.status >= 400:
                log.log(_level(call.status), "call", extra={"fields": call.fields()})

    async def _run(self, scope: Scope, receive: Receive, send: Send, call: Call, headers: Headers) -> None:
        try:
            keys = self._settings.keys
            if keys and scope["path"] not in PUBLIC_PATHS and not is_authorized(_credentials(headers), keys):
                call.error = "unauthorized"
                await unauthorized()(scope, receive, send)
                return
            await self._app(scope, receive, send)
        except ClientGone:
            call.error = "client_gone"
        except Exception as error:
            if call.status:  # the response has begun
                raise
            response = self._refusal(error, call)
            await response(scope, receive, send)

    def _refusal(self, error: Exception, call: Call) -> Response:
        refused = (
            error
            if isinstance(error, Refused)
            else Refused.of(error, self._settings.overload_status)
            if isinstance(error, StepscoreError)
            else Refused(500, "internal", "internal error", hint=f"see the server's log, {call.request_id}")
        )
        call.error = refused.kind
        if refused.status == 500:
            log.error("failed", extra={"fields": {"request_id": call.request_id} | _cause(error)})
        return refused.response()

    def _add_headers(self, headers: MutableHeaders, call: Call) -> None:
        headers["x-request-id"] = call.request_id
        headers["x-total-time"] = str(round(1000 * call.seconds))
        headers["x-content-type-options"] = "nosniff"
        if call.tokens:
            headers["x-input-tokens"] = str(call.tokens)
            headers["x-compute-tokens"] = str(call.computed_tokens)
            headers["x-queue-time"] = str(round(1000 * call.queue_seconds))
        if self._is_draining():
            headers["connection"] = "close"


def _request_id(headers: Headers) -> str:
    given = headers.get("x-request-id", "")
    return given if REQUEST_ID.fullmatch(given) else uuid.uuid4().hex


def _credentials(headers: Headers) -> str | None:
    given = headers.getlist("authorization")
    return given[0] if len(given) == 1 else None


def _level(status: int) -> int:
    return logging.INFO if status < 500 else logging.WARNING if status in (503, 504) else logging.ERROR


def _cause(error: Exception) -> dict[str, object]:
    """Return what the log may hold of a failure: messages of other errors could quote a request."""
    place = traceback.extract_tb(error.__traceback__)[-1:]
    cause: dict[str, object] = {"error": type(error).__name__}
    if place:
        cause["place"] = f"{place[0].filename}:{place[0].lineno}"
    return cause | ({"message": error.message} if isinstance(error, ArtifactError) else {})
