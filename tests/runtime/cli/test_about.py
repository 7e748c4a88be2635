"""`stepscore version`, `help` and `completion`."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import version

import pytest
from click.testing import CliRunner, Result

from stepscore.cli.main import main


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments))


def test_version_names_stepscore_first_and_then_what_it_runs_on() -> None:
    lines = invoke("version").stdout.splitlines()
    assert lines[0] == f"stepscore {version('stepscore')}"
    assert lines[1].startswith("python ")
    assert f"numpy {version('numpy')}" in lines


@pytest.mark.parametrize("command", [[], ["score"], ["evaluate", "processbench"]], ids=" ".join)
def test_help_prints_what_the_option_help_prints(command: list[str]) -> None:
    assert invoke("help", *command).stdout == invoke(*command, "--help").stdout


def test_help_of_a_group_lists_its_commands() -> None:
    found = json.loads(invoke("help", "evaluate", "--json").stdout)
    assert found["path"].endswith(" evaluate")
    assert list(found["commands"]) == ["processbench"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script_that_asks_the_program(shell: str) -> None:
    done = invoke("completion", shell)
    assert done.exit_code == 0
    assert f"_STEPSCORE_COMPLETE={shell}_complete" in done.stdout


@pytest.mark.slow
def test_the_variable_of_the_script_completes_commands() -> None:
    code = "from stepscore.cli.main import main; main(prog_name='stepscore')"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"_STEPSCORE_COMPLETE": "bash_complete", "COMP_WORDS": "stepscore ver", "COMP_CWORD": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert set(done.stdout.split()) == {"plain,verify", "plain,version"}
