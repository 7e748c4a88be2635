"""`stepscore score`: data on stdout, the rest on stderr, one exit code for every way a job can end."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import subprocess
import sys
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from testing.fake_scorer import FakeScorer
from testing.outputs import answers, lines_of, stop_clock
from testing.uninstalled import uninstall

from stepscore.cli import load_options
from stepscore.cli.main import main
from stepscore.errors import NotFound
from stepscore.jobs.seal import fingerprint_path
from stepscore.scorer import Scorer

FAKE = Path(__file__).parents[3] / "testing" / "fake_scorer.py"
GOOD = '{"id": "a", "problem": "p", "steps": ["1", "2"]}\n'


@pytest.fixture(autouse=True)
def _no_model(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    stop_clock(monkeypatch)
    if "tiny_pair" not in request.fixturenames:
        monkeypatch.setattr(Scorer, "load", FakeScorer.load)


def invoke(*arguments: object, stdin: str | bytes | None = None) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments], input=stdin)


def cli(*arguments: object, **options: Any) -> subprocess.Popen[bytes]:
    """Start the real command, in a process of its own, over the fake scorer."""
    command = [sys.executable, str(FAKE), *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)


# Jobs


def test_score_writes_to_stdout_by_default_and_talks_on_stderr() -> None:
    done = invoke("score", "pair", "-", stdin=GOOD)
    assert done.exit_code == 0
    assert [answer["id"] for answer in answers(done.stdout)] == ["a"]
    assert re.match(r"1 records in \d+\.\d s: 1 scored", done.stderr)


def test_score_reads_and_writes_files(tmp_path: Path) -> None:
    (tmp_path / "in").write_text(GOOD)
    done = invoke("score", "pair", tmp_path / "in", "-o", tmp_path / "out")
    assert (done.exit_code, done.stdout) == (0, "")
    assert [answer["id"] for answer in answers((tmp_path / "out").read_bytes())] == ["a"]
    assert fingerprint_path(tmp_path / "out").exists()


def test_score_exits_1_when_records_have_errors_and_counts_them() -> None:
    done = invoke("score", "pair", "-", stdin=GOOD + "{\n{\n")
    assert done.exit_code == 1
    assert len(answers(done.stdout)) == 3
    assert "2 with errors (invalid_json 2)" in done.stderr


def test_score_again_reports_nothing_to_do_with_the_same_exit_code(tmp_path: Path) -> None:
    (tmp_path / "in").write_text(GOOD + "{\n")
    arguments = ["score", "pair", tmp_path / "in", "-o", tmp_path / "out"]
    assert invoke(*arguments).exit_code == 1
    again = invoke(*arguments)
    assert again.exit_code == 1
    assert "is already complete: 2 records, 1 of them with errors" in again.stderr


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


@pytest.mark.parametrize("command", [["score", "pair"], ["evaluate", "processbench", "--pair", "pair"]])
def test_an_input_that_changed_exits_4_and_overwrite_starts_anew(tmp_path: Path, command: list[str]) -> None:
    """Labels pass through as texts do: the figures of an evaluation depend on them."""
    source = tmp_path / "in.jsonl"
    out = tmp_path / ("out" if command[0] == "score" else "judged")
    line = {"id": "gsm8k-0", "problem": "p", "steps": ["1", "2"], "label": 0}
    source.write_text(json.dumps(line) + "\n" + json.dumps(line | {"id": "gsm8k-1", "label": -1}) + "\n")
    arguments = [*command, source, "-o", out]
    assert invoke(*arguments).exit_code == 0
    scored = out if command[0] == "score" else out / "in.scored.jsonl"
    before = scored.read_bytes()
    source.write_text(source.read_text().replace('"label": 0', '"label": 1'))
    done = invoke(*arguments)
    assert done.exit_code == 4
    assert "line 1 of the input: `label` was 0, now 1" in done.stderr
    assert "--overwrite" in done.stderr
    assert scored.read_bytes() == before
    assert invoke(*arguments, "--overwrite").exit_code == 0
    assert answers(scored.read_bytes())[0]["label"] == 1
    assert invoke(*arguments).exit_code == 0


def test_a_larger_limit_continues(tmp_path: Path) -> None:
    (tmp_path / "in").write_text("".join(f'{{"problem": "p", "steps": ["{index}"]}}\n' for index in range(9)))
    arguments = ["score", "pair", tmp_path / "in", "-o", tmp_path / "out", "--limit"]
    assert "3 scored" in invoke(*arguments, 3).stderr
    assert "3 of the records by an earlier run" in invoke(*arguments, 7).stderr
    assert len(lines_of((tmp_path / "out").read_bytes())) == 7
    assert invoke(*arguments, 5).exit_code == 4


@pytest.mark.parametrize(
    "data", [b"[\n 1\n]\n", b"\x1f\x8b\x08\n", b'{"q": "p"}\n' * 500], ids=["[", "gz", "names"]
)
def test_a_file_without_a_record_exits_3_with_one_error_and_no_output(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "in").write_bytes(data)
    for options in (["-o", tmp_path / "out"], ["--dry-run"]):
        done = invoke("score", "pair", tmp_path / "in", *options)
        assert (done.exit_code, done.stdout) == (3, "")
        assert done.stderr.count("error: ") == done.stderr.count("hint: ") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_fields_are_named_and_a_text_is_split_on_request() -> None:
    line = '{"task": "p", "text": "1\\n\\n2", "steps": 7}\n'
    done = invoke(
        *("score", "pair", "-", "--problem-field", "task", "--steps-field", "text", "--split"), stdin=line
    )
    assert done.exit_code == 0
    (answer,) = answers(done.stdout)
    assert answer.items() >= {"task": "p", "text": "1\n\n2", "problem": "p", "steps": ["1", "2"]}.items()
    (expected,) = answers(invoke("score", "pair", "-", stdin=GOOD).stdout)
    assert answer["step_rewards"] == expected["step_rewards"]


def test_what_was_split_is_read_by_the_commands_that_follow(tmp_path: Path) -> None:
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    lines = [{"task": "p", "out": f"Add.\n\nSo \\boxed{{{n}}}.", "label": -1, "prompt": []} for n in range(3)]
    source.write_text("\n\n".join(map(json.dumps, lines)))
    reading = ("--problem-field", "task", "--steps-field", "out", "--split")
    assert invoke("score", "pair", source, "-o", out, *reading).exit_code == 0
    chosen = invoke("select", out)
    assert chosen.exit_code == 0, chosen.output
    assert invoke("report", out, "-o", tmp_path / "page.html").exit_code == 0
    assert "skipped" not in invoke("evaluate", "processbench", out, "--threshold", "0").stderr


def test_score_over_a_file_that_is_not_ours_exits_3(tmp_path: Path) -> None:
    (tmp_path / "in").write_text(GOOD)
    done = invoke("score", "pair", tmp_path / "in", "-o", tmp_path / "in")
    assert done.exit_code == 3
    assert "error: the output is the input file\n" in done.stderr
    assert (tmp_path / "in").read_text() == GOOD


def test_score_into_a_device_leaves_no_fingerprint() -> None:
    assert invoke("score", "pair", "-", "-o", os.devnull, stdin=GOOD).exit_code == 0
    assert not fingerprint_path(Path(os.devnull)).exists()


def test_score_quiet_says_nothing() -> None:
    assert invoke("score", "pair", "-", "--quiet", stdin=GOOD).stderr == ""


def test_score_limit_ends_early() -> None:
    assert len(answers(invoke("score", "pair", "-", "--limit", 2, stdin=GOOD * 5).stdout)) == 2


def test_score_tokens_adds_the_arrays() -> None:
    (answer,) = answers(invoke("score", "pair", "-", "--tokens", stdin=GOOD).stdout)
    assert len(answer["token_ids"]) == len(answer["policy_logprobs"]) + 1 == answer["num_tokens"]
    assert len(answer["token_texts"]) == answer["num_tokens"]


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the scorer is loaded with."""
    options: dict[str, Any] = {}

    def load(pair: object, **given: Any) -> FakeScorer:
        options.update(given)
        return FakeScorer.load(pair, **given)

    monkeypatch.setattr(Scorer, "load", load)
    return options


def test_score_hands_its_options_to_the_scorer(seen: dict[str, Any]) -> None:
    options = ["--convention", "exact", "--beta", "0.05", "--provider", "cpu", "--threads", "3"]
    memory = ["--residency", "stream", "--memory-limit", "4GB", "--window-tokens", "999"]
    batches = ["--max-batch-tokens", "99", "--prefix-cache", "2GB"]
    invoke("score", "pair", "-", *options, *memory, *batches, stdin=GOOD)
    assert seen == {
        "convention": "exact",
        "beta": 0.05,
        "provider": "cpu",
        "residency": "stream",
        "memory_limit": 4_000_000_000,
        "max_batch_tokens": 99,
        "window_tokens": 999,
        "threads": 3,
        "prefix_cache": 2_000_000_000,
        "tokens": False,
    }


@pytest.mark.parametrize(("cores", "warned"), [(1, True), (2, True), (3, False), (64, False)])
def test_more_threads_than_cores_are_warned_of(
    monkeypatch: pytest.MonkeyPatch, seen: dict[str, Any], cores: int, warned: bool
) -> None:
    monkeypatch.setattr(load_options, "available_cores", lambda: cores)
    done = invoke("score", "pair", "-", "--threads", "3", stdin=GOOD)
    assert (done.exit_code, seen["threads"]) == (0, 3)
    assert (f"use --threads {cores} or fewer" in done.stderr) is warned
    assert done.stdout == invoke("score", "pair", "-", stdin=GOOD).stdout


def test_score_leaves_to_the_scorer_what_is_not_given(seen: dict[str, Any]) -> None:
    invoke("score", "pair", "-", stdin=GOOD)
    assert seen.pop("residency") == "auto"
    chosen = ("memory_limit", "max_batch_tokens", "window_tokens", "threads", "prefix_cache", "beta")
    assert [seen[name] for name in chosen] == [None] * 6


@pytest.mark.parametrize(
    ("text", "num_bytes"),
    [
        ("1000B", 1000),
        ("900MB", 900_000_000),
        ("4GB", 4_000_000_000),
        ("4.5 gb", 4_500_000_000),
        (" 2 G ", 2_000_000_000),
        ("1.5k", 1500),
        ("0.5TB", 500_000_000_000),
        ("7b", 7),
    ],
)
def test_a_size_is_in_powers_of_ten(seen: dict[str, Any], text: str, num_bytes: int) -> None:
    assert invoke("score", "pair", "-", "--memory-limit", text, stdin=GOOD).exit_code == 0
    assert seen["memory_limit"] == num_bytes


@pytest.mark.parametrize("number", ["4", "4.5", "8000000000"])
def test_a_size_without_a_unit_is_asked_for_one(seen: dict[str, Any], number: str) -> None:
    done = invoke("score", "pair", "-", f"--memory-limit={number}", stdin=GOOD)
    assert done.exit_code == 2
    assert f"{number} has no unit; use {number}GB, {number}MB or {number}B" in done.stderr
    assert seen == {}


@pytest.mark.parametrize(
    "text",
    [
        *["", " ", "GB", "-1", "-1GB", "0", "0.0 MB", "nan", "inf", "1e3", "1e400", ".", "1.2.3GB", "4 G B"],
        *["4GiB", "4PB", "1,000", "4GB or so", "\N{ARABIC-INDIC DIGIT FOUR}GB"],
        pytest.param("9" * 400, id="400 digits"),
        pytest.param("9" * 300 + "TB", id="300 digits of TB"),
        pytest.param("4\N{KELVIN SIGN}", id="kelvin"),
    ],
)
def test_invalid_size_exits_2(seen: dict[str, Any], text: str) -> None:
    done = invoke("score", "pair", "-", f"--memory-limit={text}", stdin=GOOD)
    assert done.exit_code == 2
    assert "invalid size" in done.stderr
    assert seen == {}


@pytest.mark.parametrize(
    "arguments",
    [
        ["pair"],
        ["pair", "no/such/file"],
        ["pair", "-", "--convention", "none"],
        ["pair", "-", "--provider", "tpu"],
        ["pair", "-", "--beta", "0"],
        ["pair", "-", "--beta", "nan"],
        ["pair", "-", "--beta", "inf"],
        ["pair", "-", "--limit", "-1"],
        ["pair", "-", "--threshold", "0"],
        ["pair", "-", "--threshold-nats", "0"],
        ["pair", "--problem", "p", "--step", "s", "--threshold", "0", "--threshold-nats", "0"],
        ["pair", "--problem", "p"],
        ["pair", "--step", "s"],
        ["pair", "-", "--problem", "p", "--step", "s"],
        ["pair", "--problem", "p", "--step", "s", "-o", "out"],
        ["pair", "--problem", "p", "--step", "s", "--threshold", "nan"],
        ["pair", "--problem", "p", "--step", "s", "--dry-run"],
        ["pair", "--problem", "p", "--step", "s", "--split"],
        ["pair", "--problem", "p", "--step", "s", "--overwrite"],
        ["pair", "--problem", "p", "--step", "s", "--steps-field", "x"],
        ["pair", "--dry-run"],
        ["pair", "-", "--residency", "none"],
        ["pair", "-", "--max-batch-tokens", "0"],
        ["pair", "-", "--window-tokens", "0"],
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


def test_score_without_onnxruntime_says_what_to_install(
    tiny_pair: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uninstall(monkeypatch, "onnxruntime", "stepscore.engine.ort")
    done = invoke("score", str(tiny_pair), "-", stdin=GOOD)
    assert done.exit_code == 3
    assert "error: onnxruntime is not installed" in done.stderr
    assert "stepscore[cpu]" in done.stderr


# Processes


@pytest.mark.slow
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


@pytest.mark.slow
def test_interrupted_job_exits_130_and_resumes(tmp_path: Path) -> None:
    source, path = tmp_path / "in", tmp_path / "out"
    lines = "".join(f'{{"id": {index}, "problem": "p", "steps": ["{index}"]}}\n' for index in range(60))
    source.write_text(lines)
    process = cli("score", "pair", source, "-o", path, env=os.environ | {"FAKE_SECONDS": "0.1"})
    while process.poll() is None and (not path.exists() or path.read_bytes().count(b"\n") < 2):
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate()
    assert process.returncode == 130
    assert b"run the same command again to resume" in stderr
    assert b"Traceback" not in stderr
    assert invoke("score", "pair", source, "-o", path).exit_code == 0
    assert [answer["id"] for answer in answers(path.read_bytes())] == list(range(60))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
def test_a_full_device_is_an_error_not_a_traceback() -> None:
    done = invoke("score", "pair", "-", "-o", "/dev/full", stdin=GOOD)
    assert done.exit_code == 3
    assert f"error: cannot write the output: {os.strerror(errno.ENOSPC)}" in done.stderr


# One problem


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


@pytest.mark.slow
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
    assert b"error: cannot write the output" in process.stderr
    assert b"Traceback" not in process.stderr


def test_one_problem_with_an_error_exits_1() -> None:
    done = invoke("score", "pair", "--problem", "p" * 5000, "--step", "one")
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr == "error: too many characters\n"


# The real scorer


SAMPLES = "".join(
    f'{{"id": "{problem}-{sample}", "problem": "How many pens are in {problem} boxes of 12?", '
    f'"steps": ["12 pens a box.", "So {12 * problem + sample}."]}}\n'
    for sample in range(3)
    for problem in range(2)
)


@pytest.mark.parametrize("residency", ["alternate", "stream"])
def test_every_residency_gives_the_same_numbers(tiny_pair: Path, residency: str) -> None:
    """Other windows and batches make no difference either."""

    def scored(*options: str) -> list[dict[str, Any]]:
        done = invoke("score", tiny_pair, "-", "--tokens", *options, stdin=SAMPLES)
        assert done.exit_code == 0
        return answers(done.stdout)

    cut = ("--max-batch-tokens", "150", "--window-tokens", "400")
    expected, found = scored("--residency", "resident"), scored("--residency", residency, *cut)
    assert [answer["id"] for answer in found] == [answer["id"] for answer in expected]
    for one, other in zip(expected, found, strict=True):
        assert one["token_ids"] == other["token_ids"]
        for model in ("policy_logprobs", "reference_logprobs"):
            assert np.allclose(one[model], other[model], rtol=0, atol=1e-5)
        tolerance = 0.001 * 1e-5 * one["num_tokens"]  # beta times nats
        assert np.allclose(one["cumulative_rewards"], other["cumulative_rewards"], rtol=0, atol=tolerance)


def test_a_memory_limit_nothing_fits_in_exits_3(tiny_pair: Path) -> None:
    done = invoke("score", tiny_pair, "-", "--memory-limit", "1MB", stdin=GOOD)
    assert (done.exit_code, done.stdout) == (3, "")
    assert "the limit is" in done.stderr
    assert "\nhint: raise --memory-limit" in done.stderr


def test_cuda_without_a_cuda_provider_is_refused_never_run_on_the_cpu(tiny_pair: Path) -> None:
    done = invoke("score", tiny_pair, "-", "--provider", "cuda", stdin=GOOD)
    assert (done.exit_code, done.stdout) == (3, "")
    assert "\nhint: " in done.stderr
