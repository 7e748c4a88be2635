"""The life of the server's process: self-test, listening, draining at a signal, end.

load and self-test   the address is bound but does not listen: connections are refused
serving              /ready is 200
SIGTERM or SIGINT    /ready is 503 and so is every new call; what was accepted is finished
--drain-seconds      what is left is answered with 503; then the process ends
a second signal      ends the process at once
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import os
import signal
import socket
from collections.abc import Callable, Iterator

import uvicorn
from starlette.applications import Starlette

from stepscore.errors import OutputUnwritable
from stepscore.records import Record
from stepscore.scheduling.async_scorer import AsyncScorer
from stepscore.server.app import build_app
from stepscore.server.connections import BoundedProtocol
from stepscore.server.envelope import OpenSpan
from stepscore.server.metrics import Metrics
from stepscore.server.routes import Context
from stepscore.server.settings import (
    KEEP_ALIVE_SECONDS,
    MAX_HEADER_BYTES,
    WRITE_OUT_SECONDS,
    Settings,
)
from stepscore.system import allow_open_files

SELF_TEST = Record("1 + 1?", ("1 + 1 = 2.", "So 2."))
SIGNALS = (signal.SIGTERM, signal.SIGINT)

log = logging.getLogger("stepscore.server")


def bind(host: str, port: int) -> socket.socket:
    """Return a bound socket, which does not listen yet; raise OutputUnwritable for an address in use."""
    with contextlib.ExitStack() as failed:
        try:
            family, kind, protocol, _, address = socket.getaddrinfo(
                host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )[0]
            bound = failed.enter_context(socket.socket(family, kind, protocol))
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind(address)
        except OSError as error:
            raise OutputUnwritable(
                f"cannot listen at {host}, port {port}: {error.strerror or error}",
                hint="choose another --port or --host, or stop what listens there",
            ) from None
        failed.pop_all()
    return bound


def address_of(bound: socket.socket) -> str:
    """Return the URL of a bound socket."""
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def is_loopback(bound: socket.socket) -> bool:
    """Return whether only this machine reaches a bound socket."""
    host = bound.getsockname()[0].partition("%")[0]
    return bool(ipaddress.ip_address(host).is_loopback)


def serve(
    scorer: AsyncScorer,
    context: Context,
    settings: Settings,
    bound: socket.socket,
    *,
    span: OpenSpan,
    on_ready: Callable[[], None],
) -> bool:
    """Serve until a signal; return whether every accepted request was answered with its result in time."""
    allow_open_files()  # each connection is one

    async def run() -> bool:
        async with scorer:
            await scorer.score(SELF_TEST)
            drain = Drain(scorer, settings.drain_seconds)
            metrics = Metrics(context)
            app = build_app(scorer, context, settings, metrics, is_draining=lambda: drain.begun, span=span)
            await SignalledServer(_config(app), drain, on_ready).serve(sockets=[bound])
            return drain.finished

    return asyncio.run(run())


def _config(app: Starlette) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=BoundedProtocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=WRITE_OUT_SECONDS,
        h11_max_incomplete_event_size=MAX_HEADER_BYTES,
    )


class Drain:
    """Draining: begun by a signal; `finished` unless requests had to be given up."""

    def __init__(self, scorer: AsyncScorer, seconds: float) -> None:
        self._scorer = scorer
        self._seconds = seconds
        self.begun = False
        self.finished = True

    async def run(self) -> None:
        """Finish what was accepted; after the time for that, answer the rest with ScorerClosed."""
        self.begun = True
        log.info("draining", extra={"fields": {"seconds": self._seconds}})
        self.finished = await asyncio.to_thread(self._scorer.scheduler.drain, self._seconds)
        if not self.finished:
            log.warning("drain_timeout")
            await self._scorer.aclose()


class SignalledServer(uvicorn.Server):
    """uvicorn's server, which goes on answering while it drains."""

    def __init__(self, config: uvicorn.Config, drain: Drain, on_ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._drain = drain
        self._on_ready = on_ready
        self._draining: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, then say so."""
        await super().startup(sockets=sockets)
        self._on_ready()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Drain at the first signal, instead of closing the address at once."""
        loop = asyncio.get_running_loop()

        def wake(number: int, _frame: object) -> None:  # add_signal_handler of a loop is missing on Windows
            loop.call_soon_threadsafe(self._signalled, number)

        earlier = [signal.signal(number, wake) for number in SIGNALS]
        try:
            yield
        finally:
            for number, handler in zip(SIGNALS, earlier, strict=True):
                signal.signal(number, handler)

    def _signalled(self, number: int) -> None:
        if self._draining is not None:
            os._exit(128 + number)  # threads may be within a batch: nothing else ends at once
        self._draining = asyncio.create_task(self._drain_and_exit())

    async def _drain_and_exit(self) -> None:
        try:
            await self._drain.run()
        finally:
            self.should_exit = True
