"""Refused calls: which status an error has, and its JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping

import msgspec
from starlette.responses import Response

from stepscore.errors import (
    DeadlineExceeded,
    InputError,
    NonFinite,
    Overloaded,
    ScorerClosed,
    StepscoreError,
    TooLarge,
    UnknownModel,
)
from stepscore.server.settings import OverloadStatus

CLIENT_GONE = 499
"""Status of a call whose client has closed the connection: in logs and metrics only."""


class Refused(Exception):
    """A call that is answered with an error status; `kind` is the type of the error."""

    def __init__(
        self,
        status: int,
        kind: str,
        message: str,
        *,
        hint: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind
        self.message = message
        self.hint = hint
        self.headers = dict(headers or {})

    @classmethod
    def of(cls, error: StepscoreError, overload_status: OverloadStatus) -> Refused:
        """Return the refusal of a whole call for an error."""
        headers = {}
        match error:
            case Overloaded():
                status: int = overload_status
                headers["retry-after"] = str(max(1, math.ceil(error.retry_after)))
            case ScorerClosed():
                status = 503
            case DeadlineExceeded():
                status = 504
            case TooLarge():
                status = 413
            case UnknownModel():
                status = 404
            case NonFinite():
                status = 422
            case InputError():
                status = 400
            case _:
                status = 500
        return cls(status, error.code, error.message, hint=error.hint, headers=headers)

    def response(self) -> Response:
        """Return the response: {"error": {"type", "message", "hint"?}}."""
        error = {"type": self.kind, "message": self.message} | ({"hint": self.hint} if self.hint else {})
        return json_response({"error": error}, status=self.status, headers=self.headers)


class ClientGone(Exception):
    """The client closed the connection before the answer."""


def unauthorized() -> Response:
    """Return the response to a call without a valid key, with vLLM's body."""
    return json_response({"error": "Unauthorized"}, status=401, headers={"www-authenticate": "Bearer"})


def json_response(
    content: object, *, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """Return a response of JSON."""
    data = msgspec.json.encode(content)
    return Response(data, status_code=status, headers=headers, media_type="application/json")
