"""docs/server.md is true: its commands are run in order, and print what stands below them."""

from __future__ import annotations

import re
import shutil
import signal
import socket
from collections.abc import Iterator
from contextlib import suppress
from os import kill
from pathlib import Path

import pytest
from testing.doc_blocks import matches, run

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "server.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"^```sh\n(.*?)^```\n```text\n(.*?)^```\n", re.MULTILINE | re.DOTALL)


def free_ports(count: int) -> list[int]:
    probes = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports: list[int] = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


@pytest.fixture
def folder(tmp_path: Path, tiny_pair: Path) -> Iterator[Path]:
    """A folder with a pair, whose servers are ended whatever happens."""
    (tmp_path / "pair").symlink_to(tiny_pair)
    yield tmp_path
    for path in tmp_path.glob("*.pid"):
        with suppress(ProcessLookupError):
            kill(int(path.read_text()), signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl")
def test_every_command_of_the_server_page_prints_what_it_says(folder: Path) -> None:
    first, second = free_ports(2)
    page = PAGE.replace("8001", str(second)).replace(":8000", f":{first}")
    page = page.replace("stepscore serve pair >", f"stepscore serve pair --port {first} >")
    blocks = BLOCK.findall(page)
    assert len(blocks) == len(re.findall(r"^```sh$", page, re.MULTILINE))
    for code, expected in blocks:
        printed = run("sh", code, folder)
        assert matches(expected, printed), printed
