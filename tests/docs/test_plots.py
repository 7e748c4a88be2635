"""The commands of docs/plots.md run as they stand; its pictures exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner
from testing.fake_scorer import FakeScorer

pytest.importorskip("matplotlib", reason="figures need the extra plots")

from stepscore.cli.main import main
from stepscore.scorer import Scorer

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "plots.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"^```\n(.*?)^```\n", re.MULTILINE | re.DOTALL)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with solutions of some problems, and no model."""
    monkeypatch.setattr(Scorer, "load", FakeScorer.load)
    monkeypatch.chdir(tmp_path)
    for name in ("samples.jsonl", "problems.jsonl"):
        lines = (ROOT / "examples" / name).read_text(encoding="utf-8").splitlines()[:40]
        (tmp_path / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return tmp_path


def test_every_command_of_the_page_on_plots_runs_and_writes_what_it_names(folder: Path) -> None:
    commands = [line for block in BLOCK.findall(PAGE) for line in block.splitlines()]
    assert len(commands) == 10
    for command in commands:
        done = CliRunner().invoke(main, shlex.split(command)[1:])
        assert done.exit_code == 0, (command, done.stderr)
        for output in re.findall(r" -o (\S+)", command):
            assert (folder / output).stat().st_size > 0


def test_the_pictures_of_the_page_exist() -> None:
    pictures = re.findall(r"!\[.+\]\((plots/[\w-]+\.png)\)", PAGE)
    assert len(pictures) == 5
    assert all((ROOT / "docs" / picture).is_file() for picture in pictures)
