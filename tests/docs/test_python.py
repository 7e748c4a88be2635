"""The code of the page on Python runs as it stands, on a tiny pair."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

PAGE = (Path(__file__).parents[2] / "docs" / "python.md").read_text(encoding="utf-8")
*CALLS, SCRIPT = re.findall(r"^```python\n(.*?)^```\n", PAGE, re.MULTILINE | re.DOTALL)


@pytest.fixture
def folder(tiny_pair: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("pair").symlink_to(tiny_pair)
    return tmp_path


def test_the_code_of_the_page_runs(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("pandas")
    names: dict[str, Any] = {}
    for code in CALLS:
        exec(code, names)
    printed = capsys.readouterr()
    assert printed.out.startswith("Result(outcome_reward=")
    assert "2/2 [" in printed.err
    assert names["steps"]["steps"].tolist() == [step for each in names["records"] for step in each["steps"]]
    assert len(names["results"]) == 2


@pytest.mark.slow
def test_the_script_of_spawned_processes_runs(folder: Path) -> None:
    """One worker, to be quick: a process takes seconds to start."""
    assert "WORKERS = 2\n" in SCRIPT
    (folder / "script.py").write_text(SCRIPT.replace("WORKERS = 2\n", "WORKERS = 1\n"))
    done = subprocess.run([sys.executable, "script.py"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 4
