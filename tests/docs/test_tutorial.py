"""docs/tutorial.md is true: its commands are run in order, and print what stands below them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from testing.doc_blocks import matches, run

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^```(sh|python)\n(.*?)^```\n```text\n(.*?)^```\n", re.MULTILINE | re.DOTALL)


@pytest.mark.slow
def test_every_command_of_the_tutorial_prints_what_it_says(tmp_path: Path) -> None:
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    text = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
    blocks = BLOCK.findall(text)
    assert len(blocks) == len(re.findall(r"^```(?:sh|python)$", text, re.MULTILINE))
    for language, code, expected in blocks:
        printed = run(language, code, tmp_path)
        assert matches(expected, printed), printed
