"""Run the commands of a page, and compare what they print with what the page says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path


def trimmed(text: str) -> str:
    """Without spaces at line ends and blank lines at both ends, which a page does not show."""
    return "\n".join(line.rstrip() for line in text.split("\n")).strip("\n")


def matches(expected: str, printed: str) -> bool:
    """Whether the text is as expected, where `...` stands for anything within a line."""
    pattern = "[^\n]*".join(map(re.escape, trimmed(expected).split("...")))
    return re.fullmatch(pattern, trimmed(printed)) is not None


def run(language: str, code: str, folder: Path, *programs: Path) -> str:
    """Run a block in a folder and return what it prints; folders of `programs` come before all others."""
    command = [sys.executable, "-c", code] if language == "python" else ["bash", "-ec", code]
    path = os.pathsep.join(map(str, [*programs, Path(sys.executable).parent, os.environ["PATH"]]))
    environment = {**os.environ, "PATH": path, "PYTHONIOENCODING": "utf-8"}
    done = subprocess.run(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
    )
    assert done.returncode == 0, done.stdout.decode()
    return done.stdout.decode()
