"""The OpenAPI 3.1 document, generated from the table of routes and the structs of their bodies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, get_type_hints

import msgspec

from stepscore.server.envelope import PUBLIC_PATHS
from stepscore.server.routes import Route

REF = "#/components/schemas/{name}"
ERRORS = {
    "400": "The body is not valid, or, where errors are not per item, an item is not.",
    "401": "No valid API key.",
    "413": "The body or the number of its items is too large.",
    "503": "Too much waits, or the server is shutting down; Retry-After says when to come again.",
    "504": "The deadline passed.",
}


class ErrorDetail(msgspec.Struct, frozen=True, omit_defaults=True):
    """What is wrong and what to do."""

    type: str
    message: str
    hint: str | None = None


class ErrorAnswer(msgspec.Struct, frozen=True):
    """Answer of a call that is refused as a whole."""

    error: ErrorDetail


class Information(msgspec.Struct, frozen=True):
    """A GET route: its path, what it tells, and the media type of its answer."""

    path: str
    summary: str
    media_type: str | None = "application/json"


def document(
    routes: Sequence[Route[Any]], information: Sequence[Information], version: str
) -> dict[str, Any]:
    """Return the document, JSON-ready."""
    answers = {route.path: _answer_struct(route) for route in routes}
    structs = [*(route.body for route in routes), *(each for each in answers.values() if each), ErrorAnswer]
    _, schemas = msgspec.json.schema_components(structs, ref_template=REF)
    paths: dict[str, Any] = {each.path: {"get": _get(each)} for each in information}
    for route in routes:
        paths[route.path] = {"post": _post(route, answers[route.path])}
    return {
        "openapi": "3.1.0",
        "info": {"title": "stepscore", "version": version},
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


def _get(route: Information) -> dict[str, Any]:
    answer: dict[str, Any] = {"description": "OK"}
    if route.media_type is not None:
        answer["content"] = {route.media_type: {}}
    return {"summary": route.summary, "security": _security(route.path), "responses": {"200": answer}}


def _post(route: Route[Any], answer: type | None) -> dict[str, Any]:
    schema = {} if answer is None else {"schema": _ref(answer)}
    body = {"required": True, "content": {"application/json": {"schema": _ref(route.body)}}}
    responses: dict[str, Any] = {"200": {"description": "OK", "content": {"application/json": schema}}}
    for status, text in ERRORS.items():
        responses[status] = {"description": text}
        if status != "401":
            responses[status]["content"] = {"application/json": {"schema": _ref(ErrorAnswer)}}
    return {
        "summary": route.summary,
        "security": _security(route.path),
        "requestBody": body,
        "responses": responses,
    }


def _security(path: str) -> list[dict[str, Any]]:
    return [] if path in PUBLIC_PATHS else [{}, {"key": []}]  # a server without keys asks for none


def _answer_struct(route: Route[Any]) -> type | None:
    """Return the struct that a route's answer is annotated with, None for a looser type."""
    answer = get_type_hints(route.answer).get("return")
    return answer if isinstance(answer, type) and issubclass(answer, msgspec.Struct) else None


def _ref(struct: type) -> dict[str, str]:
    return {"$ref": REF.format(name=struct.__name__)}
