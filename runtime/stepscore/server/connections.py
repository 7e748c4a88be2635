"""Connections with a time limit that uvicorn lacks: a client that sends no request, or reads no answer."""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.h11_impl import H11Protocol

from stepscore.server.settings import KEEP_ALIVE_SECONDS


class BoundedProtocol(H11Protocol):
    """HTTP/1.1 of one connection, which is aborted where nothing moves for too long between two requests.

    uvicorn starts its keep-alive timer after a response, and stops it at the first byte: a connection that
    never sends a whole request would stay forever, and so would one whose answer is never read.
    """

    idle_seconds: float = KEEP_ALIVE_SECONDS
    _idle: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for a request."""
        super().connection_made(transport)
        self._wait()

    def handle_events(self) -> None:
        """Stop waiting where a request has begun."""
        super().handle_events()
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop_waiting()

    def on_response_complete(self) -> None:
        """Begin to wait for the answer to be read and for the next request."""
        self._stop_waiting()
        self._wait()
        super().on_response_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting."""
        self._stop_waiting()
        super().connection_lost(exc)

    def _wait(self) -> None:
        unread = self.transport.get_write_buffer_size()
        self._idle = self.loop.call_later(self.idle_seconds, self._check, unread)

    def _check(self, unread: int) -> None:
        """Wait on where the client has read some of the `unread` bytes, else end the connection."""
        if 0 < self.transport.get_write_buffer_size() < unread:
            self._wait()
        else:
            self.transport.abort()

    def _stop_waiting(self) -> None:
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None
