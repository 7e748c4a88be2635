"""Every process that the packages start is isolated from the current folder."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILES = [*(ROOT / "runtime").rglob("*.py"), *(ROOT / "export").rglob("*.py")]


def commands(source: str) -> list[list[str]]:
    """The lists of a file that hold sys.executable, as source text."""
    lists = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.List)]
    texts = [[ast.unparse(element) for element in node.elts] for node in lists]
    return [elements for elements in texts if "sys.executable" in elements]


@pytest.mark.parametrize(
    "path", [path for path in FILES if "sys.executable" in path.read_text("utf-8")], ids=str
)
def test_python_is_started_without_the_current_folder(path: Path) -> None:
    """-P keeps installed packages of the user and PYTHONPATH, but runs no module of the current folder."""
    found = commands(path.read_text("utf-8"))
    assert found
    for elements in found:
        assert elements[:2] in (["sys.executable", "'-P'"], ["sys.executable", "'-I'"])


def test_processes_are_started_by_the_files_above_only() -> None:
    starting = [path for path in FILES if "import subprocess" in path.read_text("utf-8")]
    assert all("sys.executable" in path.read_text("utf-8") for path in starting)
