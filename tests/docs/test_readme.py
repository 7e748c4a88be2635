"""README's commands work word for word, in their order, in a checkout."""

from __future__ import annotations

import re
import sys
import tomllib
from itertools import islice
from pathlib import Path

import pytest
from testing.doc_blocks import matches, run

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"^```(sh|python)?\n(.*?)^```\n(?:```text\n(.*?)^```\n)?", re.MULTILINE | re.DOTALL)


def blocks() -> list[tuple[str, str, str]]:
    """Language, code and expected output of every block of commands, in order; not the tree of folders."""
    return [block for block in BLOCK.findall(README) if not block[1].startswith("runtime/")]


def program(folder: Path, name: str, lines: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{lines}\n")
    (folder / name).chmod(0o755)


@pytest.fixture
def stand_ins(tmp_path: Path) -> Path:
    """pip, which has been run, and make: `make demo` runs the demo in this environment, the rest is CI."""
    folder = tmp_path / "bin"
    folder.mkdir()
    program(folder, "pip", "exit 0")
    program(folder, "make", f'[ "$1" != demo ] || exec {sys.executable} examples/demo.py')
    return folder


def short_examples(folder: Path) -> None:
    """The files of examples/, of each split the first 80 problems: `make demo` in CI scores all of them."""
    (folder / "examples").mkdir()
    for path in (ROOT / "examples").iterdir():
        here = folder / "examples" / path.name
        if path.name in ("problems.jsonl", "threshold.jsonl"):
            with path.open(encoding="utf-8") as lines:
                here.write_text("".join(islice(lines, 80)), encoding="utf-8")
        else:
            here.symlink_to(path)


@pytest.mark.slow
def test_every_command_of_the_readme_works_and_prints_what_it_says(tmp_path: Path, stand_ins: Path) -> None:
    short_examples(tmp_path)
    for language, code, expected in blocks():
        printed = run(language, code, tmp_path, stand_ins)
        assert not expected or matches(expected, printed), printed
    assert {"pair", "rewards.jsonl", "report.html", "out"} <= {path.name for path in tmp_path.iterdir()}


def test_what_the_readme_installs_and_makes_exists() -> None:
    commands = "".join(code for _, code, _ in blocks())
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for named in re.findall(r"pip install 'stepscore\[([\w,]+)\]'", commands):
        assert set(named.split(",")) <= set(extras)
    targets = re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    made = re.findall(r"^make (\S+)", commands, re.MULTILINE)
    assert made
    assert set(made) <= set(targets)
