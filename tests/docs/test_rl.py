"""The code of the page on RL trainers, and of its_hub's part of the page on searches, runs as it stands."""

from __future__ import annotations

import ast
import asyncio
import importlib
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from stepscore.enums import Series

DOCS = Path(__file__).parents[2] / "docs"
BLOCK = re.compile(r"^```(python|text)\n(.*?)^```\n", re.MULTILINE | re.DOTALL)
PATH, NAME = re.compile(r"path=pkg://(\S+)\n"), re.compile(r"\.name=(\w+)\n")


def blocks(page: str, language: str) -> list[str]:
    found = BLOCK.findall((DOCS / page).read_text(encoding="utf-8"))
    return [code for kind, code in found if kind == language]


@pytest.fixture
def folder(tiny_pair: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("pair").symlink_to(tiny_pair)
    return tmp_path


def test_the_code_of_the_page_runs(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = {}
    for code in blocks("rl.md", "python"):
        exec(code, names)
    assert names["per_token"].series is Series.MEAN
    (reward,) = ast.literal_eval(capsys.readouterr().out)
    assert isinstance(reward, float)
    assert "rewards" in names["reward_func"](["1 + 1?2"], ["1 + 1?"], ["2"])
    sample = SimpleNamespace(prompt="1 + 1?", response="2", tokens=[], response_length=0, remove_sample=False)
    assert isinstance(asyncio.run(names["pair_rm"](SimpleNamespace(reward_key=None), sample)), float)


def test_what_verl_s_configuration_names_exists() -> None:
    named = [block for block in blocks("rl.md", "text") if PATH.search(block)]
    assert len(named) == 3
    for block in named:
        (module,), (name,) = PATH.findall(block), NAME.findall(block)
        assert callable(getattr(importlib.import_module(module), name))


def test_the_code_for_its_hub_runs(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The search itself: tests/runtime/integrations/clients/test_its_hub_client.py."""
    (code,) = (block for block in blocks("search.md", "python") if "stepscore.integrations.its_hub" in block)
    exec(code, {})
    values = ast.literal_eval(capsys.readouterr().out)
    assert len(values) == 2
    assert all(0 < value < 1 for value in values)
