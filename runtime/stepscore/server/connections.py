"""Connections with time limits that uvicorn lacks: idle before a request, and an answer that nobody reads."""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.h11_impl import H11Protocol

from stepscore.server.settings import KEEP_ALIVE_SECONDS, WRITE_SECONDS


class BoundedProtocol(H11Protocol):
    """HTTP/1.1 of one connection, which is aborted where its client sends or reads nothing for too long.

    uvicorn starts its keep-alive timer after a response, and stops it at the first byte: a connection that
    never sends a whole request would stay forever.
    """

    idle_seconds: float = KEEP_ALIVE_SECONDS
    write_seconds: float = WRITE_SECONDS
    _idle: asyncio.TimerHandle | None = None
    _unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for a request."""
        super().connection_made(transport)
        self._idle = self._abort_after(self.idle_seconds)

    def handle_events(self) -> None:
        """Stop waiting where a request has begun."""
        super().handle_events()
        if self._idle is not None and self.cycle is not None and not self.cycle.response_complete:
            self._idle.cancel()

    def on_response_complete(self) -> None:
        """Begin to wait for the next request."""
        _cancel(self._idle)
        self._idle = self._abort_after(self.idle_seconds)
        super().on_response_complete()

    def pause_writing(self) -> None:
        """Begin to wait for the client to read."""
        super().pause_writing()
        self._unread = self._abort_after(self.write_seconds)

    def resume_writing(self) -> None:
        """Stop waiting: the client reads."""
        super().resume_writing()
        _cancel(self._unread)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop all waiting."""
        _cancel(self._idle)
        _cancel(self._unread)
        super().connection_lost(exc)

    def _abort_after(self, seconds: float) -> asyncio.TimerHandle:
        return self.loop.call_later(seconds, self.transport.abort)


def _cancel(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()
