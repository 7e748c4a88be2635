"""docs/tutorial.md is true: its commands are run in order, and print what stands below them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^```(sh|python)\n(.*?)^```\n```text\n(.*?)^```\n", re.MULTILINE | re.DOTALL)


def trimmed(text: str) -> str:
    """Without spaces at line ends and blank lines at the end, which a page does not show."""
    return "\n".join(line.rstrip() for line in text.rstrip().split("\n"))


def matches(expected: str, printed: str) -> bool:
    """Whether the text is as expected, where `...` stands for anything within a line."""
    pattern = "[^\n]*".join(map(re.escape, trimmed(expected).split("...")))
    return re.fullmatch(pattern, trimmed(printed)) is not None


def run(language: str, code: str, folder: Path) -> str:
    command = ["bash", "-ec", code] if language == "sh" else [sys.executable, "-c", code]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHONIOENCODING": "utf-8"}
    done = subprocess.run(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
    )
    assert done.returncode == 0, done.stdout.decode()
    return done.stdout.decode()


@pytest.mark.slow
def test_every_command_of_the_tutorial_prints_what_it_says(tmp_path: Path) -> None:
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    text = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
    blocks = BLOCK.findall(text)
    assert len(blocks) == len(re.findall(r"^```(?:sh|python)$", text, re.MULTILINE))
    for language, code, expected in blocks:
        printed = run(language, code, tmp_path)
        assert matches(expected, printed), printed
