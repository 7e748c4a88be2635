"""Read and decode the body of a call within limits of size and time."""

from __future__ import annotations

import asyncio
from typing import NoReturn, TypeVar

import msgspec
from starlette.requests import ClientDisconnect, Request

from stepscore.errors import InvalidJson, InvalidRecord, Overloaded, TooLarge
from stepscore.server.refusals import ClientGone, Refused
from stepscore.server.settings import MAX_BUFFERED_BODIES, READ_SECONDS

DISCARDED_BODIES = 8
"""How many times the limit is read of a body that is too large, so that its client reads the answer."""

_CLOSE = {"connection": "close"}
_JSON_HINT = "send the header Content-Type: application/json"

T = TypeVar("T")


class BodyReader:
    """Reads bodies of at most `max_bytes`, and bounds the bytes of all that are being read at once."""

    def __init__(self, max_bytes: int, seconds: float = READ_SECONDS) -> None:
        self.max_bytes = max_bytes
        self._seconds = seconds
        self._buffered = 0

    async def read(self, request: Request) -> bytes:
        """Return the body; raise Refused (413, 415, 408), Overloaded or ClientGone."""
        _check_type(request)
        try:
            async with asyncio.timeout(self._seconds):
                return await self._read(request)
        except ClientDisconnect:
            raise ClientGone from None
        except TimeoutError:
            raise Refused(
                408,
                "request_timeout",
                f"the body did not arrive within {self._seconds:g} seconds",
                headers=_CLOSE,
            ) from None

    async def _read(self, request: Request) -> bytes:
        announced = _announced(request)
        if announced > self.max_bytes:
            await self._refuse_large(request, announced)
        buffer = bytearray()
        try:
            async for chunk in request.stream():
                if self._buffered + len(chunk) > MAX_BUFFERED_BODIES * self.max_bytes:
                    raise Overloaded("too many bodies are being read at once")
                self._buffered += len(chunk)
                buffer += chunk
                if len(buffer) > self.max_bytes:
                    await self._refuse_large(request, announced=0)
            return bytes(buffer)
        finally:
            self._buffered -= len(buffer)

    async def _refuse_large(self, request: Request, announced: int) -> NoReturn:
        """Raise Refused, after reading on without keeping anything: unread bytes would reset the connection.

        Nothing is read where the client waits for `100 Continue`, or announces far too much.
        """
        most = DISCARDED_BODIES * self.max_bytes
        waits = request.headers.get("expect", "").lower() == "100-continue"
        count, more = 0, not waits and announced <= most
        while more and count <= most:
            message = await request.receive()
            if message["type"] == "http.disconnect":
                raise ClientGone
            count += len(message.get("body", b""))
            more = message.get("more_body", False)
        raise Refused(
            413,
            TooLarge.code,
            f"the body has more than {self.max_bytes} bytes",
            hint="send fewer items a call, or start the server with a larger --max-body-size",
            headers=_CLOSE,
        )


def decode(data: bytes, body: type[T]) -> T:
    """Return the struct of a body; raise InvalidJson or InvalidRecord, which say what is wrong and where."""
    try:
        return msgspec.json.decode(data, type=body)
    except msgspec.ValidationError as error:
        raise InvalidRecord(
            f"the body is not valid: {error}", hint="/docs shows what the route reads"
        ) from None
    except RecursionError:
        raise InvalidJson("the body is nested too deeply") from None
    except ValueError as error:  # msgspec.DecodeError, UnicodeDecodeError
        raise InvalidJson(f"the body is not JSON: {str(error).removeprefix('JSON is malformed: ')}") from None


def _check_type(request: Request) -> None:
    """Raise Refused for a body that is not plain JSON; a web page of another site can send none."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise Refused(415, "unsupported_media_type", "the body must be JSON", hint=_JSON_HINT)
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise Refused(415, "unsupported_media_type", "the body must not be compressed")


def _announced(request: Request) -> int:
    """Return the Content-Length, 0 where there is none."""
    text = request.headers.get("content-length", "0")
    return int(text) if text.isascii() and text.isdigit() else 0
