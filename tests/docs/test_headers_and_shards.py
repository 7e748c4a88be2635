"""The commands of docs/scoring.md on headers and shards, and the SLURM scripts of docs/clusters.md, run."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from testing.fake_scorer import FakeScorer
from testing.outputs import answers, header_of, lines_of

from stepscore.cli.main import main
from stepscore.scorer import Scorer

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def section(page: str, title: str) -> list[tuple[str, str]]:
    """Language and text of the blocks of a section."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    return BLOCK.findall(text.split(f"\n## {title}\n")[1].split("\n## ")[0])


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with solutions of some problems, and no model."""
    monkeypatch.setattr(Scorer, "load", FakeScorer.load)
    monkeypatch.chdir(tmp_path)
    lines = (ROOT / "examples" / "samples.jsonl").read_text(encoding="utf-8").splitlines()[:40]
    (tmp_path / "solutions.jsonl").write_text("\n".join([*lines, "{"]) + "\n", encoding="utf-8")
    return tmp_path


def run(command: str) -> int:
    done = CliRunner().invoke(main, command.split()[1:])
    assert done.exit_code in {0, 1}, done.output
    return done.exit_code


def test_the_commands_for_shards_give_what_one_run_gives(folder: Path) -> None:
    ((_, commands),) = section("scoring.md", "Shards")
    assert sorted(run(command) for command in commands.splitlines()) == [0, 1, 1]  # one line is no record
    run("stepscore score PAIR solutions.jsonl -o whole.jsonl")
    whole, merged = ((folder / name).read_bytes() for name in ("whole.jsonl", "rewards.jsonl"))
    assert lines_of(merged) == lines_of(whole)


@pytest.mark.skipif(shutil.which("jq") is None, reason="jq is not installed")
def test_the_commands_for_headers_read_what_they_say(folder: Path) -> None:
    run("stepscore score PAIR solutions.jsonl -o rewards.jsonl")
    _, (_, commands) = section("scoring.md", "The header")
    rewards, beta, lines = (
        subprocess.run(command, shell=True, check=True, capture_output=True).stdout.splitlines()
        for command in commands.splitlines()
    )
    assert (len(rewards), beta, len(lines)) == (40, [b"0.001"], 41)


def test_the_header_on_the_page_has_the_fields_of_one() -> None:
    (_, shown), _ = section("scoring.md", "The header")
    assert header_of(shown.replace("\n", "") + "\n").options is not None


@pytest.mark.slow
def test_the_slurm_scripts_score_and_merge(folder: Path, tiny_pair: Path) -> None:
    (_, score), (_, merge), _ = section("clusters.md", "SLURM")
    assert "--array=1-8\n" in score
    (folder / "PAIR").symlink_to(tiny_pair)
    (folder / "score.sbatch").write_text(score.replace("SHARDS=8\n", "SHARDS=2\n"))
    (folder / "merge.sbatch").write_text(merge)
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}

    def bash(script: str, **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", script], env=environment | variables, capture_output=True, text=True, check=False
        )

    assert bash("score.sbatch", SLURM_ARRAY_TASK_ID="1").returncode == 0
    early = bash("merge.sbatch")
    assert early.returncode == 4
    assert "of 2 shards 1 are missing: 2/2" in early.stderr
    assert bash("score.sbatch", SLURM_ARRAY_TASK_ID="2").returncode == 0
    assert bash("merge.sbatch").returncode == 0  # although one line is no record
    found = answers((folder / "rewards.jsonl").read_bytes())
    assert len(found) == 41
    assert found[-1]["error"]["code"] == "invalid_json"
    assert sum("step_rewards" in answer for answer in found) > 20  # of a tiny context
