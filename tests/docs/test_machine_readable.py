"""The commands of the page on machine-readable output run as they stand, and print one object each."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from stepscore.cli.main import main
from stepscore.cli.results import AnyResult, Failure

PAGE = (Path(__file__).parents[2] / "docs" / "machine-readable.md").read_text(encoding="utf-8")
COMMANDS = [
    line.partition(" | ")[0]
    for kind, block in re.findall(r"^```(\w*)\n(.*?)^```\n", PAGE, re.MULTILINE | re.DOTALL)
    for line in block.splitlines()
    if not kind
]


@pytest.fixture
def _folder(tiny_pair: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("PAIR").symlink_to(tiny_pair)
    Path("solutions.jsonl").write_text('{"problem": "1 + 1?", "steps": ["2."]}\n')


@pytest.mark.usefixtures("_folder")
@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_page_runs(command: str) -> None:
    done = CliRunner().invoke(main, shlex.split(command)[1:])
    assert (done.exit_code, bool(done.stdout)) == (0, True)
    if "--json" in command:
        msgspec.json.decode(done.stdout, type=AnyResult)


def test_the_error_of_the_page_is_the_one_that_is_printed() -> None:
    (text,) = re.findall(r"^```json\n(.*?)^```\n", PAGE, re.MULTILINE | re.DOTALL)
    done = CliRunner().invoke(main, ["verify", "no/such", "--json"])
    assert (done.exit_code, json.loads(done.stderr)) == (3, json.loads(text))
    msgspec.json.decode(text, type=Failure)
