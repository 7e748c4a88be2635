"""Thresholds that the pages give as examples mark some steps of the bundled pair, and not all."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from click.testing import CliRunner
from testing.outputs import answers
from testing.pairs import export_unmeasured

from stepscore.cli.main import main
from stepscore.enums import Precision
from stepscore.evaluation.threshold import outside_of
from stepscore_export.options import ExportOptions

ROOT = Path(__file__).parents[2]
GENERATED = ROOT / "docs" / "cli.md"  # from the help texts in cli/
PAGES = [ROOT / "README.md", *{*(ROOT / "docs").glob("*.md")} - {GENERATED}]
PAGES += sorted((ROOT / "runtime" / "stepscore" / "cli").glob("*.py"))
EXAMPLE = re.compile(r"--threshold(-nats)? (-?[0-9.]+)")
BETA = 0.001
SOLUTIONS = 60


def block(page: str) -> list[str]:
    """The first commands of a page."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    return text.partition("```\n")[2].partition("```")[0].splitlines()


@pytest.fixture
def scored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the commands of docs/report.md write, on the bundled pair."""
    models = ROOT / "examples" / "pair"
    export_unmeasured(
        models / "policy", models / "reference", tmp_path / "PAIR", ExportOptions(Precision.FP32, beta=BETA)
    )
    problems = (ROOT / "examples" / "problems.jsonl").read_text(encoding="utf-8").splitlines()
    (tmp_path / "solutions.jsonl").write_text("\n".join(problems[:SOLUTIONS]) + "\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    for command in block("report.md"):
        done = CliRunner().invoke(main, command.split()[1:])
        assert done.exit_code == 0, done.output
        assert "warning" not in done.stderr
    assert (tmp_path / "report.html").exists()
    return tmp_path / "rewards.jsonl"


@pytest.mark.slow
def test_the_thresholds_of_the_pages_lie_within_the_rewards_of_the_bundled_pair(scored: Path) -> None:
    rewards = [answer["step_rewards"] for answer in answers(scored.read_bytes())]
    found = [match.groups() for page in PAGES for match in EXAMPLE.finditer(page.read_text(encoding="utf-8"))]
    assert len(found) >= 2
    for nats, value in found:
        threshold = float(value) * (BETA if nats else 1)
        assert outside_of(threshold, rewards) is None, value
