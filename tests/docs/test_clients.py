"""docs/clients.md is true: its commands run in order and print what stands below them; its tests exist."""

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
PAGE = (ROOT / "docs" / "clients.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"^```sh\n(.*?)^```\n```text\n(.*?)^```\n", re.MULTILINE | re.DOTALL)


@pytest.fixture
def folder(tmp_path: Path, tiny_pair: Path) -> Iterator[Path]:
    """A folder with a pair, whose server is ended whatever happens."""
    (tmp_path / "pair").symlink_to(tiny_pair)
    yield tmp_path
    for path in tmp_path.glob("*.pid"):
        with suppress(ProcessLookupError):
            kill(int(path.read_text()), signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl")
def test_every_command_of_the_clients_page_prints_what_it_says(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    page = PAGE.replace(":8000", f":{port}").replace("serve pair --beta", f"serve pair --port {port} --beta")
    blocks = BLOCK.findall(page)
    assert len(blocks) == len(re.findall(r"^```sh$", page, re.MULTILINE))
    for code, expected in blocks:
        printed = run("sh", code, folder)
        assert matches(expected, printed), printed


def test_every_test_that_the_page_names_exists() -> None:
    named = re.findall(r"\| `(test_\w+)` \|$", PAGE, re.MULTILINE)
    sources = "".join(
        path.read_text(encoding="utf-8")
        for path in (ROOT / "tests" / "runtime" / "server" / "protocols").glob("test_*.py")
    )
    assert len(named) == 9
    for name in named:
        assert f"def {name}(" in sources, name
