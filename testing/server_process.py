"""A real `stepscore serve` in a process of its own, on a free port of this machine."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import httpx
import msgspec

COMMAND = [sys.executable, "-P", "-c", "from stepscore.cli.main import main; main()", "serve"]


@dataclass(frozen=True)
class Served:
    """A server that accepts calls: its process, its address and the file of its log."""

    process: subprocess.Popen[bytes]
    address: str
    started: str
    log: Path

    def get(self, path: str) -> httpx.Response:
        return httpx.get(self.address + path, timeout=60)

    def score(self, items: list[Any], **options: Any) -> httpx.Response:
        return httpx.post(f"{self.address}/v1/score", json={"items": items}, timeout=60, **options)

    def metric(self, name: str) -> float:
        """Return a metric by its name and labels, 0 where it was never counted."""
        for line in self.get("/metrics").text.splitlines():
            if line.startswith(f"stepscore_{name} "):
                return float(line.split()[-1])
        return 0.0

    def calls(self) -> list[dict[str, Any]]:
        """Return the log lines of calls."""
        lines = [msgspec.json.decode(line) for line in self.log.read_bytes().splitlines()]
        return [line for line in lines if line["event"] == "call"]


@contextmanager
def serving(pair: Path, folder: Path, *options: str, **variables: str) -> Iterator[Served]:
    """Yield a server of a pair, which is killed if it has not ended by itself."""
    log = folder / "server.log"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"} | variables
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            [*COMMAND, str(pair), "--port", "0", "--threads", "1", *options],
            stdout=subprocess.PIPE,
            stderr=stderr,
            env=environment,
        )
    try:
        with cast(Any, process.stdout) as stdout:
            started = stdout.readline().decode()
            found = re.search(r" at (http://\S+) ", started)
            assert found, log.read_text()
            yield Served(process, found[1], started, log)
    finally:
        process.kill()
        process.wait()
