"""The commands of the pages on scoring and selecting run as they stand, on a tiny pair."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from testing.checkpoints import TINY
from testing.outputs import answers

from stepscore.cli.main import main

DOCS = Path(__file__).parents[2] / "docs"
BLOCK = re.compile(r"^```(?:json)?\n(.*?)^```\n", re.MULTILINE | re.DOTALL)
TEXTS: dict[str, Any] = {"problem": "1 + 1?", "steps": ["1 + 1 = 2.", "So \\boxed{2}."], "final_answer": "2"}


def blocks(page: str) -> list[str]:
    return BLOCK.findall((DOCS / page).read_text(encoding="utf-8"))


def commands(page: str) -> list[str]:
    """The stepscore commands of a page in order, each without what it is piped into or from."""
    lines = [line for block in blocks(page) for line in block.splitlines()]
    parts = (part.strip() for line in lines for part in line.split(" | "))
    return [part for part in parts if part.startswith("stepscore ")]


def ids_of_the_page() -> dict[str, Any]:
    """The example of token ids, each within the vocabulary of the tiny pair."""
    (text,) = (block for block in blocks("scoring.md") if "prompt_token_ids" in block and block[0] == "{")
    given = json.loads(text)
    return {
        name: [token % TINY.vocab_size for token in value] if name.endswith("token_ids") else value
        for name, value in given.items()
    }


@pytest.fixture
def folder(tiny_pair: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the files that the pages name."""
    monkeypatch.chdir(tmp_path)
    Path("PAIR").symlink_to(tiny_pair)
    samples = [TEXTS | {"id": f"a-{k}"} for k in range(2)]
    for name in ("solutions.jsonl", "samples.jsonl"):
        Path(name).write_text("".join(json.dumps(line) + "\n" for line in samples))
    Path("answers.jsonl").write_text(json.dumps({"task": "1 + 1?", "output": "It is.\n\n2."}) + "\n")
    Path("ids.jsonl").write_text(json.dumps(ids_of_the_page()) + "\n")
    return tmp_path


def run(command: str, source: bytes) -> bytes:
    done = CliRunner().invoke(main, shlex.split(command, comments=True)[1:], input=source)
    assert done.exit_code == 0, (command, done.stderr)
    return done.stdout_bytes


def test_every_command_of_the_page_on_scoring_runs(folder: Path) -> None:
    """But `bench`, which takes seconds: tests/runtime/cli/test_bench.py."""
    given = [command for command in commands("scoring.md") if not command.startswith("stepscore bench")]
    assert len(given) > 6
    for command in given:
        run(command, (folder / "solutions.jsonl").read_bytes())
        for written in folder.glob("rewards.jsonl*"):  # the next command is another job
            written.unlink()
    (line,), of_the_page = answers(Path("tokens.scored.jsonl").read_bytes()), ids_of_the_page()
    assert line["step_ends"] == of_the_page["step_ends"]
    assert len(line["token_rewards"]) == len(of_the_page["response_token_ids"])


def test_every_command_of_the_page_on_selecting_runs(folder: Path) -> None:
    given = commands("selecting.md")
    assert len(given) > 6
    printed = run("stepscore score PAIR samples.jsonl -o rewards.jsonl", b"")
    for command in given:
        printed = run(command, printed)


def test_the_code_for_asyncio_runs_as_it_stands(
    tiny_pair: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "pair").symlink_to(tiny_pair)
    monkeypatch.chdir(tmp_path)
    page = (DOCS / "scoring.md").read_text(encoding="utf-8").partition("### From asyncio")[2]
    (code,) = re.findall(r"^```python\n(.*?)^```\n", page, re.MULTILINE | re.DOTALL)
    exec(compile(code, "scoring.md", "exec"), {"records": [TEXTS] * 3})
    assert len(set(json.loads(capsys.readouterr().out))) == 1
