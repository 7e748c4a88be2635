"""The command line: data on stdout, the rest on stderr, one exit code for every way a command can end."""

from __future__ import annotations

import errno
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
import zlib
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from click.testing import CliRunner, Result
from tests.fake_scorer import FakeResult, FakeScorer

from stepscore import shell
from stepscore.cli import main
from stepscore.errors import NotFound
from stepscore.resume import fingerprint_path
from stepscore.scorer import Scorer
from stepscore.table import console, print_steps

FAKE = Path(__file__).with_name("fake_scorer.py")
GOOD = '{"id": "a", "problem": "p", "steps": ["1", "2"]}\n'


@pytest.fixture(autouse=True)
def _no_model(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    if "tiny_pair" not in request.fixturenames:
        monkeypatch.setattr(Scorer, "load", FakeScorer.load)


def invoke(*arguments: object, stdin: str | bytes | None = None) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments], input=stdin)


def cli(*arguments: object, **options: Any) -> subprocess.Popen[bytes]:
    """Start the real command, in a process of its own, over the fake scorer."""
    command = [sys.executable, str(FAKE), *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)


# score: jobs.


def test_score_writes_to_stdout_by_default_and_talks_on_stderr() -> None:
    done = invoke("score", "pair", "-", stdin=GOOD)
    assert done.exit_code == 0
    assert json.loads(done.stdout)["id"] == "a"
    assert re.match(r"1 records in \d+\.\d s: 1 scored", done.stderr)


def test_score_reads_and_writes_files(tmp_path: Path) -> None:
    (tmp_path / "in").write_text(GOOD)
    done = invoke("score", "pair", tmp_path / "in", "-o", tmp_path / "out")
    assert (done.exit_code, done.stdout) == (0, "")
    assert json.loads((tmp_path / "out").read_text())["id"] == "a"
    assert fingerprint_path(tmp_path / "out").exists()


def test_score_exits_1_when_records_have_errors_and_counts_them() -> None:
    done = invoke("score", "pair", "-", stdin=GOOD + "{\n{\n")
    assert done.exit_code == 1
    assert len(done.stdout.splitlines()) == 3
    assert "2 with errors (invalid_json 2)" in done.stderr


def test_score_again_says_that_there_is_nothing_to_do_with_the_same_exit_code(tmp_path: Path) -> None:
    (tmp_path / "in").write_text(GOOD + "{\n")
    arguments = ["score", "pair", tmp_path / "in", "-o", tmp_path / "out"]
    assert invoke(*arguments).exit_code == 1
    again = invoke(*arguments)
    assert again.exit_code == 1
    assert "is complete: 2 records, 1 of them with errors, nothing to do" in again.stderr


def test_score_with_another_beta_exits_4_naming_it(tmp_path: Path) -> None:
    (tmp_path / "in").write_text(GOOD)
    arguments = ["score", "pair", tmp_path / "in", "-o", tmp_path / "out"]
    invoke(*arguments)
    before = (tmp_path / "out").read_bytes()
    done = invoke(*arguments, "--beta", "0.05")
    assert done.exit_code == 4
    assert "beta was 0.001, now 0.05" in done.stderr
    assert "\nhint: " in done.stderr
    assert (tmp_path / "out").read_bytes() == before


def test_score_over_a_file_that_is_not_ours_exits_3(tmp_path: Path) -> None:
    (tmp_path / "in").write_text(GOOD)
    done = invoke("score", "pair", tmp_path / "in", "-o", tmp_path / "in")
    assert done.exit_code == 3
    assert "error: the output is the input\n" in done.stderr
    assert (tmp_path / "in").read_text() == GOOD


def test_score_into_a_device_leaves_no_fingerprint() -> None:
    assert invoke("score", "pair", "-", "-o", os.devnull, stdin=GOOD).exit_code == 0
    assert not fingerprint_path(Path(os.devnull)).exists()


def test_score_quiet_says_nothing() -> None:
    assert invoke("score", "pair", "-", "--quiet", stdin=GOOD).stderr == ""


def test_score_limit_ends_early() -> None:
    assert len(invoke("score", "pair", "-", "--limit", 2, stdin=GOOD * 5).stdout.splitlines()) == 2


def test_score_tokens_adds_the_arrays() -> None:
    answer = json.loads(invoke("score", "pair", "-", "--tokens", stdin=GOOD).stdout)
    assert len(answer["token_ids"]) == len(answer["policy_logprobs"]) + 1 == answer["num_tokens"]


def test_score_hands_its_options_to_the_scorer(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    def load(pair: object, **options: Any) -> FakeScorer:
        seen.update(options)
        return FakeScorer.load(pair, **options)

    monkeypatch.setattr(Scorer, "load", load)
    options = ["--convention", "exact", "--beta", "0.05", "--provider", "cpu", "--threads", "3"]
    invoke("score", "pair", "-", *options, "--max-batch-tokens", "99", stdin=GOOD)
    assert seen == {
        "convention": "exact",
        "beta": 0.05,
        "provider": "cpu",
        "threads": 3,
        "max_batch_tokens": 99,
        "tokens": False,
    }


@pytest.mark.parametrize(
    "arguments",
    [
        ["pair"],
        ["pair", "no/such/file"],
        ["pair", "."],
        ["pair", "-", "--convention", "none"],
        ["pair", "-", "--provider", "tpu"],
        ["pair", "-", "--beta", "0"],
        ["pair", "-", "--beta", "nan"],
        ["pair", "-", "--beta", "inf"],
        ["pair", "-", "--limit", "-1"],
        ["pair", "-", "--threshold", "0"],
        ["pair", "--problem", "p"],
        ["pair", "--step", "s"],
        ["pair", "-", "--problem", "p", "--step", "s"],
        ["pair", "--problem", "p", "--step", "s", "-o", "out"],
        ["pair", "--problem", "p", "--step", "s", "--threshold", "nan"],
    ],
    ids=" ".join,
)
def test_score_used_wrongly_exits_2(arguments: list[str]) -> None:
    done = invoke("score", *arguments, stdin=GOOD)
    assert done.exit_code == 2
    assert done.stdout == ""


def test_a_pair_that_is_refused_exits_3_with_a_hint(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(pair: object, **options: Any) -> FakeScorer:
        raise NotFound("there is no pair", hint="export one")

    monkeypatch.setattr(Scorer, "load", load)
    done = invoke("score", "pair", "-", stdin=GOOD)
    assert (done.exit_code, done.stdout) == (3, "")
    assert done.stderr == "error: there is no pair\nhint: export one\n"


def test_without_onnxruntime_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "stepscore.scorer")
    for name in [name for name in sys.modules if name.startswith(("onnxruntime", "stepscore.engine"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.delitem(sys.modules, "stepscore.provider")
    done = invoke("score", "pair", "-", stdin=GOOD)
    assert done.exit_code == 3
    assert "error: onnxruntime is not installed" in done.stderr
    assert "stepscore[cpu]" in done.stderr


# score: processes.


def test_head_ends_a_job_quietly(tmp_path: Path) -> None:
    (tmp_path / "in").write_text(GOOD * 5000)
    process = cli("score", "pair", tmp_path / "in", "--quiet")
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait() == 0


def test_an_interrupted_job_exits_130_and_goes_on_where_it_was(tmp_path: Path) -> None:
    source, path = tmp_path / "in", tmp_path / "out"
    lines = "".join(f'{{"id": {index}, "problem": "p", "steps": ["{index}"]}}\n' for index in range(60))
    source.write_text(lines)
    process = cli("score", "pair", source, "-o", path, env=os.environ | {"FAKE_SECONDS": "0.1"})
    while not path.exists() or not path.read_bytes():
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate()
    assert process.returncode == 130
    assert b"run the same command again to continue" in stderr
    assert b"Traceback" not in stderr
    assert invoke("score", "pair", source, "-o", path).exit_code == 0
    assert [json.loads(line)["id"] for line in path.read_text().splitlines()] == list(range(60))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
def test_a_full_device_is_an_error_not_a_traceback() -> None:
    done = invoke("score", "pair", "-", "-o", "/dev/full", stdin=GOOD)
    assert done.exit_code == 3
    assert f"error: the output cannot be written: {os.strerror(errno.ENOSPC)}" in done.stderr


# score: one problem.


def test_one_problem_prints_a_table_with_the_lowest_negative_step_marked() -> None:
    done = invoke("score", "pair", "--problem", "p", "--step", "one", "--step", "two", "--step", "three")
    assert done.exit_code == 0
    rewards = [0.001 * (value / 2**31 - 1) for value in map(crc, ["one", "two", "three"])]
    rows = [line for line in done.stdout.splitlines() if re.search(r"(one|two|three)\s*$", line)]
    assert [row.startswith(" >") for row in rows] == [reward == min(rewards) for reward in rewards]
    assert "outcome" in done.stdout
    assert "convention card, beta 0.001" in done.stdout


def crc(text: str) -> int:
    return zlib.crc32(text.encode())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
def test_a_full_disk_behind_stdout_is_an_error_not_a_traceback() -> None:
    with Path("/dev/full").open("wb") as full:
        process = subprocess.run(
            [sys.executable, FAKE, "score", "pair", "-"],
            check=False,
            input=GOOD.encode(),
            stdout=full,
            stderr=subprocess.PIPE,
        )
    assert process.returncode == 3
    assert b"error: the output cannot be written" in process.stderr
    assert b"Traceback" not in process.stderr


def test_one_problem_with_an_error_exits_1() -> None:
    done = invoke("score", "pair", "--problem", "p" * 5000, "--step", "one")
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr == "error: too many characters\n"


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
    assert "no reward is below -1" in table([0.2, 0.05, -0.3], threshold=-1.0)


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


# The real scorer.


def test_the_commands_work_on_a_real_pair(tiny_pair: Path) -> None:
    done = invoke("score", tiny_pair, "-", "--tokens", stdin=GOOD)
    assert done.exit_code == 0
    answer = json.loads(done.stdout)
    assert len(answer["cumulative_rewards"]) == len(answer["step_ends"]) == 2
    assert len(answer["policy_logprobs"]) == answer["num_tokens"] - 1
    assert "outcome" in invoke("score", tiny_pair, "--problem", "1+1?", "--step", "2").stdout
    for command in ("inspect", "verify", "doctor"):
        assert invoke(command, tiny_pair).exit_code == 0


def test_cuda_without_a_cuda_provider_is_refused_never_run_on_the_cpu(tiny_pair: Path) -> None:
    done = invoke("score", tiny_pair, "-", "--provider", "cuda", stdin=GOOD)
    assert (done.exit_code, done.stdout) == (3, "")
    assert "\nhint: " in done.stderr


# Plug-ins.


@pytest.fixture
def plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two plug-ins: one that works, and one that cannot be imported."""
    points = EntryPoints(
        [
            EntryPoint("hello", "tests.test_cli:hello", shell.PLUGIN_GROUP),
            EntryPoint("broken", "no_such_module:command", shell.PLUGIN_GROUP),
            EntryPoint("number", "math:pi", shell.PLUGIN_GROUP),
            EntryPoint("score", "tests.test_cli:hello", shell.PLUGIN_GROUP),
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
    assert f"error: the command {arguments[0]} cannot be loaded" in done.stderr
    assert "cannot be loaded" in invoke("--help").stdout
    assert invoke("score", "pair", "-", stdin=GOOD).exit_code == 0


@pytest.mark.usefixtures("plugins")
def test_no_plug_in_replaces_a_command() -> None:
    assert "Score a file" in invoke("score", "--help").stdout


@pytest.mark.parametrize("command", [["score", "--help"], ["inspect", "--help"], ["--version"]])
def test_help_imports_neither_the_engine_nor_the_exporter(command: list[str]) -> None:
    code = (
        "import sys; from stepscore.cli import main\n"
        f"try: main({command})\n"
        "except SystemExit: pass\n"
        "print({'numpy', 'onnxruntime', 'rich', 'stepscore_export'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "set()"


@pytest.mark.parametrize("command", ["score", "inspect", "verify", "doctor"])
def test_every_help_text_has_an_example(command: str) -> None:
    assert f"stepscore {command} PAIR" in invoke(command, "--help").stdout
