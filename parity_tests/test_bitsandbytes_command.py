"""A pair of bitsandbytes' weights on the command line, from the bundled checkpoints to rewards."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from parity_tests.support.bundled_pair import EXAMPLES, PROBLEMS
from testing.outputs import answers

from stepscore import Scorer
from stepscore.cli.main import main

MODELS = [
    *("--policy", EXAMPLES / "pair" / "policy", "--reference", EXAMPLES / "pair" / "reference"),
    *("--format", "bitsandbytes"),
]
LINES = PROBLEMS.read_text(encoding="utf-8").splitlines()[:4]
BAD = ["{", '{"id": "none", "problem": "p", "steps": []}']


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def shown(*arguments: object) -> str:
    done = run(*arguments)
    assert done.exit_code == 0, done.output
    return " ".join(done.stdout.split())


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("bundled") / "int8"
    done = run("export", *MODELS, "--precision", "int8", "--output", output)
    assert done.exit_code == 0, done.stderr
    assert "bitsandbytes int8, each model quantized alone" in done.stderr
    assert "self-test on cpu" in done.stderr
    assert "fidelity: log-ratio error" in done.stderr
    return output


WITHOUT_EXPORT = """
import json, sys
sys.modules["stepscore_export"] = sys.modules["onnxruntime"] = None  # importing them fails
from stepscore import Scorer
with Scorer.load(sys.argv[1]) as scorer:
    (result,) = scorer.score([json.loads(sys.argv[2])])
print(result.step_rewards)
"""


def test_scoring_needs_pytorch_and_neither_the_export_stage_nor_onnxruntime(pair: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_EXPORT, str(pair), LINES[0]],
        check=True,
        capture_output=True,
        text=True,
    )
    with Scorer.load(pair) as scorer:
        (expected,) = scorer.score([json.loads(LINES[0])])
    assert json.loads(done.stdout) == pytest.approx(expected.step_rewards, abs=1e-7)


def results(path: Path) -> list[dict[str, object]]:
    return answers(path.read_bytes())


def test_bad_lines_become_error_records_and_the_run_goes_on(pair: Path, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text("\n".join([*LINES[:2], *BAD, *LINES[2:]]), encoding="utf-8")
    done = run("score", pair, tmp_path / "in.jsonl", "-o", tmp_path / "out.jsonl")
    assert done.exit_code == 1
    found = results(tmp_path / "out.jsonl")
    codes = [None if "error" not in each else each["error"]["code"] for each in found]  # type: ignore[index]
    assert codes == [None, None, "invalid_json", "no_steps", None, None]


def test_interrupted_run_resumes_to_the_same_bytes(pair: Path, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text("\n".join(LINES), encoding="utf-8")
    score = ("score", pair, tmp_path / "in.jsonl", "--max-batch-tokens", 1)
    for name in ("whole", "cut"):
        assert run(*score, "-o", tmp_path / name).exit_code == 0
    whole = (tmp_path / "whole").read_bytes()
    (tmp_path / "cut").write_bytes(whole[: len(whole) // 2])
    assert run(*score, "-o", tmp_path / "cut").exit_code == 0
    assert (tmp_path / "cut").read_bytes() == whole


def test_residency_changes_no_reward(pair: Path) -> None:
    problem = json.loads(LINES[0])
    steps = [part for step in problem["steps"] for part in ("--step", step)]
    score = ("score", pair, "--problem", problem["problem"], *steps)
    assert shown(*score, "--residency", "alternate") == shown(*score, "--residency", "resident")


def test_stream_residency_is_rejected_before_loading(pair: Path, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text(LINES[0], encoding="utf-8")
    for dry_run in ([], ["--dry-run"]):
        done = run("score", pair, tmp_path / "in.jsonl", "--residency", "stream", *dry_run)
        assert done.exit_code == 3
        assert done.stderr.splitlines() == [
            "error: bitsandbytes pairs do not support --residency stream: "
            "they do not store layers separately",
            "hint: use --residency alternate, which holds one model at a time",
        ]


def test_inspect_shows_storage_and_memory(pair: Path) -> None:
    said = shown("inspect", pair)
    for fact in (
        "format bitsandbytes",
        "precision int8, for cpu and cuda",
        "coding independent",
        "resident: ",
        "alternate: ",
        "fidelity log-ratio error",
        "bitsandbytes 0.",
    ):
        assert fact in said
    assert "stream" not in said


def test_verify_and_doctor_support_bitsandbytes_pairs(pair: Path) -> None:
    assert "5 files" in shown("verify", pair)
    said = shown("doctor", pair)
    assert "for PyTorch (bitsandbytes)" in said
    assert "scoring works here" in said


def test_a_dry_run_of_scoring_estimates_its_memory(pair: Path, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text("\n".join(LINES), encoding="utf-8")
    said = shown("score", pair, tmp_path / "in.jsonl", "--dry-run")
    assert "records 4" in said
    assert "GB, estimated peak" in said


def test_memory_limit_below_the_need_is_rejected(pair: Path, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text(LINES[0], encoding="utf-8")
    done = run("score", pair, tmp_path / "in.jsonl", "--memory-limit", "10MB")
    assert done.exit_code == 3
    assert "scoring in batches of 128 tokens needs about" in done.stderr


def test_export_dry_run_prints_disk_and_memory(tmp_path: Path) -> None:
    said = shown("export", *MODELS, "--precision", "nf4", "--output", tmp_path / "pair", "--dry-run")
    assert "bitsandbytes nf4, each model quantized alone" in said
    assert "block size" not in said
    assert list(tmp_path.iterdir()) == []


def test_bench_times_bitsandbytes_pairs(pair: Path) -> None:
    assert "128 random tokens" in shown("bench", pair, "--repeats", 1)
