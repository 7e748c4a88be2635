"""A real `stepscore serve` in a process of its own, for clients that need a socket."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ADDRESS = re.compile(r"http://127\.0\.0\.1:(\d+)")
SERVE = "import sys; from stepscore.cli.main import main; main(['serve', *sys.argv[1:]])"


@contextmanager
def serve(pair: Path, *options: str) -> Iterator[int]:
    """Yield the port of a server of a pair; end it afterwards."""
    command = [sys.executable, "-c", SERVE, str(pair), "--port", "0", "--threads", "1", *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert process.stdout is not None
        found = ADDRESS.search(process.stdout.readline())
        assert found, "the server did not start"
        yield int(found.group(1))
    finally:
        process.terminate()
        process.wait(timeout=60)
