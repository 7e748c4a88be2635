"""--format: one table in five formats, the same in every command, with its origin."""

from __future__ import annotations

import csv
import io
import json
from importlib.metadata import version
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from testing.scored_lines import scored, write

from stepscore.cli.main import main
from stepscore.enums import Convention
from stepscore.jobs.provenance import HeaderLine, Provenance

ORIGIN = Provenance(
    pair="c0ffee" * 10,
    beta=0.05,
    convention=Convention.EXACT,
    version="0.0.1",
    date="2026-01-01T00:00:00.000Z",
)


def run(*arguments: object) -> Result:
    done = CliRunner().invoke(main, [*map(str, arguments)])
    assert done.exit_code == 0, done.stderr
    return done


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Two samples of one problem, with labels and a header."""
    records = [
        scored([0.1 * at, -0.1], id=f"g_1-{at}", answer=str(at), final_answer="1", label=label)
        for at, label in enumerate((1, -1))
    ]
    file = write(tmp_path / "s.jsonl", *records)
    file.write_bytes(HeaderLine(ORIGIN).encode() + file.read_bytes())
    return file


COMMANDS = {"select": ["select"], "evaluate": ["evaluate", "processbench", "--threshold-from", "g_1"]}


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_every_format_names_version_pair_and_scale(command: list[str], path: Path) -> None:
    for name in ("table", "markdown", "latex"):
        done = run(*command, path, "--format", name)
        text = done.stderr if name == "table" and command == ["select"] else done.stdout
        line = " ".join(text[text.rindex(f"stepscore {version('stepscore')}; ") :].split("\n", 1)[0].split())
        assert line.startswith(
            f"stepscore {version('stepscore')}; pair c0ffeec0ffee; convention exact; beta 0.05"
        )
    (first, *_) = csv.DictReader(io.StringIO(run(*command, path, "--format", "csv").stdout))
    assert (first["pair"], first["beta"], first["convention"]) == (ORIGIN.pair, "0.05", "exact")
    assert (first["date"], first["scored_by_version"]) == (ORIGIN.date, "0.0.1")
    document = json.loads(run(*command, path, "--format", "json").stdout)
    assert document["stepscore"]["pair"] == ORIGIN.pair


def test_csv_has_the_unrounded_numbers_of_json(path: Path) -> None:
    rows = csv.DictReader(io.StringIO(run("select", path, "--format", "csv").stdout))
    accuracies = json.loads(run("select", path, "--json").stdout)["accuracies"]
    for row, found in zip(rows, accuracies, strict=True):
        assert float(row["chosen"]) == found["chosen"]["mean"]
        assert float(row["chosen_high"]) == found["chosen"]["high"]
    (subset, average) = csv.DictReader(
        io.StringIO(run(*COMMANDS["evaluate"], path, "--format", "csv").stdout)
    )
    assert (subset["subset"], average["subset"], average["num_error"]) == ("g_1", "average", "")
    assert (
        float(subset["threshold_reward"])
        == json.loads(run(*COMMANDS["evaluate"], path, "--json").stdout)["threshold"]["reward"]
    )


def test_json_is_short_for_its_format_and_no_other(path: Path) -> None:
    long, short = (
        run("evaluate", "processbench", path, "--threshold", "0", *given).stdout
        for given in (["--format", "json"], ["--json"])
    )
    assert json.loads(long)["subsets"] == json.loads(short)["subsets"]
    both = CliRunner().invoke(main, ["select", str(path), "--json", "--format", "csv"])
    assert (both.exit_code, "not both" in both.stderr) == (2, True)


def test_rewards_without_a_header_are_said_to_be_of_an_unknown_pair(tmp_path: Path) -> None:
    bare = write(tmp_path / "s", scored([0.1], id=1, label=0), scored([0.2], id=2, label=-1))
    assert "pair unknown" in run("evaluate", "processbench", bare, "--threshold", "0.15").stdout
