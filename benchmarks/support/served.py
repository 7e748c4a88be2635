"""A server under load: `stepscore serve` as a process, and clients that post to it from threads.

Clients are threads with a connection each from the standard library: on two cores a heavier client would
take the server's time. Everything stays on the loopback interface and is bounded in count and time.
"""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

HOST = "127.0.0.1"
ANSWER_SECONDS = 600.0
"""Longest wait for one answer, and for a server to be ready."""


@dataclass(frozen=True, slots=True)
class Served:
    """A running server."""

    process: subprocess.Popen[bytes]
    port: int

    def connection(self) -> http.client.HTTPConnection:
        """Open a connection."""
        return http.client.HTTPConnection(HOST, self.port, timeout=ANSWER_SECONDS)

    def get(self, path: str) -> tuple[int, bytes]:
        """Return status and body of a GET."""
        connection = self.connection()
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def metric(self, name: str) -> float:
        """Return the value of a metric without labels."""
        _, body = self.get("/metrics")
        values = [line.split()[-1] for line in body.decode().splitlines() if line.startswith(f"{name} ")]
        return float(values[0])

    def memory_mb(self) -> float:
        """Return the resident memory of the process, MB (10^6 bytes)."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        (line,) = (line for line in status.splitlines() if line.startswith("VmRSS:"))
        return int(line.split()[1]) * 1024 / 1e6


@contextlib.contextmanager
def served(pair: Path, *options: str) -> Iterator[Served]:
    """Serve a pair on a free port; stop it at the end, whatever happened."""
    port = free_port()
    code = "from stepscore.cli.main import main; main()"
    command = [sys.executable, "-c", code, "serve", str(pair), "--port", str(port), *options]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        server = Served(process, port)
        try:
            _until_ready(server)
            yield server
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()


def free_port() -> int:
    """Return a port of the loopback interface that nothing listens on."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def _until_ready(server: Served) -> None:
    ended = time.monotonic() + ANSWER_SECONDS
    while time.monotonic() < ended:
        if server.process.poll() is not None:
            raise SystemExit(f"the server ended with code {server.process.returncode} before it was ready")
        try:
            if server.get("/ready")[0] == http.client.OK:
                return
        except OSError:
            pass
        time.sleep(0.1)
    raise SystemExit("the server is not ready")


def body_of(*records: dict[str, Any], wanted: Sequence[str] = ("outcome", "steps")) -> bytes:
    """Return the body of one call that scores these records."""
    items = [{name: each[name] for name in ("id", "problem", "steps") if name in each} for each in records]
    return json.dumps({"items": items, "return": list(wanted)}).encode()


@dataclass(slots=True)
class Load:
    """What clients saw: statuses, seconds and rewards of their calls, by the number of the record."""

    statuses: Counter[str] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    rewards: list[tuple[int, float]] = field(default_factory=list)
    memory_mb: list[float] = field(default_factory=list)
    wall: float = 0.0

    def percentile(self, share: float) -> float:
        """Return a percentile of the seconds of answered calls."""
        return round(float(np.percentile(self.seconds, 100 * share)), 3) if self.seconds else float("nan")


def posted(
    server: Served,
    bodies: Sequence[bytes],
    *,
    clients: int,
    seconds: float,
    pause: float = 0.0,
    stop: threading.Event | None = None,
) -> Load:
    """Have clients post one call after the other for a time; each takes the next body that none has taken.

    A refused call (503) is followed by `pause` seconds. Clients begin no call after `seconds`, or `stop`.
    """
    load, lock = Load(), threading.Lock()
    taken = itertools.count()
    stop = stop or threading.Event()
    begun = time.monotonic()
    ended = begun + seconds

    def client() -> None:
        connection = server.connection()
        while time.monotonic() < ended and not stop.is_set():
            with lock:
                at = next(taken) % len(bodies)
            started = time.monotonic()
            try:
                connection.request("POST", "/v1/score", bodies[at], {"Content-Type": "application/json"})
                answer = connection.getresponse()
                text, status = answer.read(), str(answer.status)
            except (OSError, http.client.HTTPException) as error:
                connection.close()
                text, status = b"", type(error).__name__
            with lock:
                load.statuses[status] += 1
                if status == "200":
                    load.seconds.append(time.monotonic() - started)
                    (result,) = json.loads(text)["results"]
                    load.rewards.append((at, result.get("outcome_reward", float("nan"))))
            if status != "200":
                stop.wait(pause)
        connection.close()

    threads = [threading.Thread(target=client, daemon=True) for _ in range(clients)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        time.sleep(0.25)
        with contextlib.suppress(OSError, ValueError):  # the server may end
            load.memory_mb.append(server.memory_mb())
    load.wall = time.monotonic() - begun
    return load


def killed_clients(server: Served, bodies: Sequence[bytes], *, processes: int, each: int) -> None:
    """Post from other processes, `each` calls at once, and kill these with SIGKILL while they wait."""
    code = (
        "import socket, sys, time\n"
        "body = sys.stdin.buffer.read()\n"
        "head = b'POST /v1/score HTTP/1.1\\r\\nHost: x\\r\\nContent-Type: application/json\\r\\n'\n"
        "head += b'Content-Length: %d\\r\\n\\r\\n' % len(body)\n"
        f"open_ = [socket.create_connection(('{HOST}', {server.port})) for _ in range({each})]\n"
        "[each.sendall(head + body) for each in open_]\n"
        "print('sent', flush=True)\n"
        "time.sleep(600)\n"
    )
    running = []
    for at in range(processes):
        child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.write(bodies[at % len(bodies)])
        child.stdin.close()
        running.append(child)
    for child in running:
        assert child.stdout is not None
        child.stdout.readline()
    for child in running:
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
