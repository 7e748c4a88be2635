"""The ASGI application: scoring routes of the table, and routes that tell about the server."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import BaseRoute
from starlette.routing import Route as Endpoint

from stepscore.scheduling.async_scorer import AsyncScorer
from stepscore.server import page
from stepscore.server.calls import Calls
from stepscore.server.envelope import Envelope, OpenSpan
from stepscore.server.metrics import CONTENT_TYPE, Metrics
from stepscore.server.openapi import Information, document
from stepscore.server.refusals import Refused, json_response
from stepscore.server.routes import Context, Route
from stepscore.server.settings import Settings
from stepscore.server.table import ROUTES
from stepscore.server.tracing import no_span

INFORMATION = (
    Information("/health", "The process is alive: 200, no body.", None),
    Information("/ready", "The pair is loaded and the server accepts calls; else 503."),
    Information("/version", "Version of stepscore, and fingerprint of the pair."),
    Information("/metrics", "Metrics for Prometheus.", "text/plain"),
    Information("/v1/models", "Names under which the pair is served."),
    Information("/openapi.json", "This document."),
    Information("/docs", "This document as a page.", "text/html"),
)
ROLES = ("policy", "reference")
"""Model ids of the two models of the pair, for routes that give log-probs of one."""


def build_app(
    scorer: AsyncScorer,
    context: Context,
    settings: Settings,
    metrics: Metrics,
    *,
    is_draining: Callable[[], bool],
    span: OpenSpan = no_span,
    routes: Sequence[Route[Any]] = ROUTES,
) -> Starlette:
    """Return the application of a loaded pair; readiness and refusals follow `is_draining`."""
    about = _About(context, metrics, is_draining, document(routes, INFORMATION, context.version))
    calls = Calls(scorer, context, settings, is_draining)
    metrics.watch(scorer.scheduler)
    endpoints: list[BaseRoute] = [
        Endpoint("/health", about.health),
        Endpoint("/ready", about.ready),
        Endpoint("/version", about.version),
        Endpoint("/metrics", about.metrics),
        Endpoint("/v1/models", about.models),
        Endpoint("/openapi.json", about.openapi),
        Endpoint("/docs", about.docs),
        *(Endpoint(route.path, calls.endpoint(route), methods=["POST"]) for route in routes),
    ]
    envelope = Middleware(
        Envelope,
        settings=settings,
        paths=frozenset(each.path for each in INFORMATION) | {route.path for route in routes},
        is_draining=is_draining,
        observe=metrics.call,
        span=span,
    )
    app = Starlette(
        routes=endpoints, middleware=[envelope], exception_handlers={HTTPException: _refuse_request}
    )
    app.router.redirect_slashes = False  # a redirect would send the body again, or lose it
    return app


class _About:
    """Endpoints that tell about the server."""

    def __init__(
        self, context: Context, metrics: Metrics, is_draining: Callable[[], bool], openapi: dict[str, Any]
    ) -> None:
        self._context = context
        self._metrics = metrics
        self._is_draining = is_draining
        self._openapi = openapi
        self._page = page.render(openapi)
        self._started = int(time.time())

    async def health(self, _: Request) -> Response:
        return Response()

    async def ready(self, _: Request) -> Response:
        if self._is_draining():
            raise Refused(503, "draining", "the server is shutting down")
        return json_response({"ready": True})

    async def version(self, _: Request) -> Response:
        return json_response({"version": self._context.version, "fingerprint": self._context.fingerprint})

    async def metrics(self, _: Request) -> Response:
        return Response(self._metrics.text(), headers={"content-type": CONTENT_TYPE})

    async def models(self, _: Request) -> Response:
        names = dict.fromkeys((self._context.name, *self._context.aliases, *ROLES))
        return json_response({"object": "list", "data": [self._model(name) for name in names]})

    async def openapi(self, _: Request) -> Response:
        return json_response(self._openapi)

    async def docs(self, _: Request) -> Response:
        return HTMLResponse(self._page, headers={"content-security-policy": page.POLICY})

    def _model(self, name: str) -> dict[str, object]:
        return {
            "id": name,
            "object": "model",
            "created": self._started,
            "owned_by": "stepscore",
            "root": self._context.name,
            "parent": None,
            "max_model_len": self._context.max_tokens,
        }


async def _refuse_request(request: Request, error: Exception) -> Response:
    """Raise what Starlette refuses, an unknown route or a wrong method, as every other refusal."""
    assert isinstance(error, HTTPException)
    path, method = request.url.path[:200], request.method[:20]
    if error.status_code == 404:
        raise Refused(404, "not_found", f"there is no route {path}", hint="/docs lists all routes")
    if error.status_code == 405:
        message = f"{path} does not accept {method}"
        raise Refused(405, "method_not_allowed", message, headers=error.headers)
    raise Refused(error.status_code, "invalid_request", str(error.detail), headers=error.headers)
