"""Connections that send or read nothing are closed, and no other."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest
import uvicorn
from uvicorn.server import ServerState

from stepscore.server.connections import BoundedProtocol

GET = b"GET / HTTP/1.1\r\nhost: server\r\n\r\n"
App = Callable[[Any, Any, Any], Awaitable[None]]
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Quick(BoundedProtocol):
    """Limits that a test can wait for."""

    idle_seconds = 0.05


@asynccontextmanager
async def connected(app: App) -> AsyncIterator[tuple[Streams, ServerState]]:
    """Yield the two ends of a connection: the client's streams, and the state of the server."""
    config = uvicorn.Config(app, http=Quick, ws="none", lifespan="off", log_config=None)
    config.load()
    state, loop = ServerState(), asyncio.get_running_loop()
    server = await loop.create_server(lambda: Quick(config, state, {}, loop), "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    yield (reader, writer), state
    writer.transport.abort()
    server.close()
    await server.wait_closed()


def answering(body: bytes, before: float = 0.0) -> App:
    """Return an application that waits, and answers with a body."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.sleep(before)
        length = [(b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": length})
        await send({"type": "http.response.body", "body": body})

    return app


@pytest.mark.parametrize("sent", [b"", GET[:20], GET], ids=["nothing", "half a head", "one request"])
def test_a_connection_without_a_request_is_closed(sent: bytes) -> None:
    async def wait() -> bytes:
        async with connected(answering(b"ok")) as ((reader, writer), _):
            writer.write(sent)
            return await reader.read()  # ends when the server closes

    answer = asyncio.run(wait())
    assert answer.endswith(b"ok") if sent == GET else answer == b""


def test_a_request_that_takes_longer_than_idle_connections_may_is_answered() -> None:
    async def ask() -> list[bytes]:
        async with connected(answering(b"ok", before=4 * Quick.idle_seconds)) as ((reader, writer), _):
            answers = []
            for _ in range(2):
                writer.write(GET)
                answers.append(await reader.readuntil(b"ok"))
            return answers

    assert [answer[:15] for answer in asyncio.run(ask())] == [b"HTTP/1.1 200 OK"] * 2


def test_an_answer_that_nobody_reads_is_given_up() -> None:
    async def wait() -> None:
        async with connected(answering(b"x" * (64 << 20))) as ((_, writer), state):
            writer.write(GET)
            while not state.total_requests:
                await asyncio.sleep(0.01)
            while state.connections:
                await asyncio.sleep(0.01)

    asyncio.run(wait())


class Transport(asyncio.Transport):
    """A connection whose client reads when a test says so."""

    unread = 1000
    aborted = False

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default

    def get_write_buffer_size(self) -> int:
        return self.unread

    def abort(self) -> None:
        self.aborted = True


class Clock:
    """An event loop whose timers go off when a test says so."""

    def __init__(self) -> None:
        self.due: list[Callable[[], None]] = []

    def call_later(self, _: float, function: Callable[..., None], *arguments: Any) -> asyncio.TimerHandle:
        self.due.append(lambda: function(*arguments))
        return cast(asyncio.TimerHandle, self)


def test_a_slow_reader_is_waited_for_as_long_as_it_reads() -> None:
    config = uvicorn.Config(answering(b""), http=Quick, ws="none", lifespan="off", log_config=None)
    clock, transport = Clock(), Transport()
    Quick(config, ServerState(), {}, cast(asyncio.AbstractEventLoop, clock)).connection_made(transport)
    for unread in (900, 500, 1):
        transport.unread = unread
        clock.due.pop()()
        assert not transport.aborted
    clock.due.pop()()
    assert transport.aborted
