"""The command line around `score`: what a person reads, plug-ins, help, and every command on a real pair."""

from __future__ import annotations

import io
import re
import subprocess
import sys
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from click.testing import CliRunner, Result
from testing.fake_scorer import FakeResult, FakeScorer
from testing.outputs import answers

from stepscore.cli import group as shell
from stepscore.cli.main import main
from stepscore.cli.tables import console, print_steps
from stepscore.scorer import Scorer

GOOD = '{"id": "a", "problem": "p", "steps": ["1", "2"]}\n'


def invoke(*arguments: object, stdin: str | bytes | None = None) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments], input=stdin)


# Tables


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def table(
    rewards: list[float],
    threshold: float | None = None,
    *,
    steps: list[str] | None = None,
    colour: bool = False,
) -> str:
    stream = Terminal() if colour else io.StringIO()
    cumulative = np.cumsum(rewards).tolist()
    result: Any = FakeResult(cumulative, rewards, cumulative[-1], 9, [1] * len(rewards))
    print_steps(console(stream), steps or [f"s{i}" for i in range(len(rewards))], result, threshold, "basis")
    return stream.getvalue()


def marked(text: str) -> list[str]:
    return re.findall(r"^ > +(\d+) ", text, re.MULTILINE)


def test_no_step_is_marked_when_no_reward_is_negative() -> None:
    assert marked(table([0.1, 0.0])) == []
    assert "no step has a negative reward" in table([0.1, 0.0])


def test_a_threshold_marks_the_first_step_below_it() -> None:
    assert marked(table([0.2, 0.05, -0.3], threshold=0.1)) == ["2"]
    assert "no reward is below -1: the lowest is -0.3" in table([0.2, 0.05, -0.3], threshold=-1.0)
    assert "every reward is below 5: the highest is 0.2" in table([0.2, 0.05, -0.3], threshold=5.0)


def test_the_table_is_at_most_120_columns_wide_and_loses_no_text() -> None:
    step = " ".join(f"word{index}" for index in range(300)) + " " + "x" * 500
    text = table([-0.1], steps=[step])
    assert max(map(len, text.splitlines())) <= 120
    letters = re.sub(r"[^a-z0-9]", "", text.replace("> step 1 has the lowest reward: look there first", ""))
    assert re.sub(r"\W", "", step) in letters.replace("1011000100", "")


def test_text_is_never_markup_and_never_a_control_sequence() -> None:
    text = table([-0.1], steps=["[bold]a[/bold] :smile: \x1b[31mred\x1b[0m \u202e"])
    assert "[bold]a[/bold] :smile: \\x1b[31mred\\x1b[0m \\u202e" in text
    assert "\x1b" not in text


def test_colour_is_for_terminals_and_no_color_is_honoured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\x1b[1;31m" in table([-0.1], colour=True)
    assert "\x1b" not in table([-0.1])
    monkeypatch.setenv("NO_COLOR", "1")
    assert "31m" not in table([-0.1], colour=True)


# The real scorer


def test_the_commands_work_on_a_real_pair(tiny_pair: Path) -> None:
    done = invoke("score", tiny_pair, "-", "--tokens", stdin=GOOD)
    assert done.exit_code == 0
    (answer,) = answers(done.stdout)
    assert len(answer["cumulative_rewards"]) == len(answer["step_ends"]) == 2
    assert len(answer["policy_logprobs"]) == answer["num_tokens"] - 1
    assert "outcome" in invoke("score", tiny_pair, "--problem", "1+1?", "--step", "2").stdout
    for command in ("inspect", "verify", "doctor"):
        assert invoke(command, tiny_pair).exit_code == 0


# Plug-ins


@pytest.fixture
def plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    """A plug-in that works, two that cannot be loaded, and one named as a command is; and no model."""
    monkeypatch.setattr(Scorer, "load", FakeScorer.load)
    points = EntryPoints(
        [
            EntryPoint("hello", "tests.runtime.cli.test_main:hello", shell.PLUGIN_GROUP),
            EntryPoint("broken", "no_such_module:command", shell.PLUGIN_GROUP),
            EntryPoint("number", "math:pi", shell.PLUGIN_GROUP),
            EntryPoint("score", "tests.runtime.cli.test_main:hello", shell.PLUGIN_GROUP),
        ]
    )
    monkeypatch.setattr(shell, "entry_points", points.select)


@click.command()
def hello() -> None:
    """Greet."""
    click.echo("hello")


@pytest.mark.usefixtures("plugins")
def test_a_plug_in_is_a_command() -> None:
    assert invoke("hello").stdout == "hello\n"
    assert "Greet." in invoke("--help").stdout


@pytest.mark.usefixtures("plugins")
@pytest.mark.parametrize(
    "arguments", [["broken"], ["broken", "--help"], ["broken", "a", "--b=c"], ["number"]]
)
def test_a_broken_plug_in_says_so_and_breaks_nothing_else(arguments: list[str]) -> None:
    done = invoke(*arguments)
    assert done.exit_code == 3
    assert f"error: cannot load the command {arguments[0]}" in done.stderr
    assert "cannot be loaded" in invoke("--help").stdout
    assert invoke("score", "pair", "-", stdin=GOOD).exit_code == 0


@pytest.mark.usefixtures("plugins")
def test_no_plug_in_replaces_a_command() -> None:
    assert "Score a file" in invoke("score", "--help").stdout


@pytest.mark.parametrize(
    "command",
    [["score", "--help"], ["select", "--help"], ["evaluate", "processbench", "--help"], ["--version"]],
)
def test_help_imports_neither_the_engine_nor_the_exporter(command: list[str]) -> None:
    code = (
        "import sys; from stepscore.cli.main import main\n"
        f"try: main({command})\n"
        "except SystemExit: pass\n"
        "print({'numpy', 'onnxruntime', 'rich', 'stepscore_export'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "set()"


@pytest.mark.parametrize("command", ["score", "bench", "inspect", "verify", "doctor"])
def test_every_help_text_has_an_example(command: str) -> None:
    assert f"stepscore {command} PAIR" in invoke(command, "--help").stdout


@pytest.mark.parametrize("command", [["select"], ["evaluate", "processbench"]])
def test_help_of_what_reads_scored_files_has_an_example(command: list[str]) -> None:
    done = invoke(*command, "--help")
    assert f"  stepscore {' '.join(command)} " in done.stdout.partition("Examples:")[2]
