"""Run `stepscore parity` on the bundled pair."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result

from stepscore.cli.main import main

EXAMPLES = Path(__file__).parents[1] / "examples"
POLICY, REFERENCE = EXAMPLES / "pair" / "policy", EXAMPLES / "pair" / "reference"
PROBLEMS = EXAMPLES / "problems.jsonl"


def arguments(pair: Path, *more: object, data: object = PROBLEMS, limit: int = 3) -> list[str]:
    """Return the command line; later options override earlier ones."""
    models = ["--policy", POLICY, "--reference", REFERENCE]
    return [str(part) for part in ["parity", pair, *models, "--data", data, "--limit", limit, *more]]


def parity(pair: Path, *more: object, data: object = PROBLEMS, limit: int = 3, stdin: str = "") -> Result:
    """Run the command in this process."""
    return CliRunner().invoke(main, arguments(pair, *more, data=data, limit=limit), input=stdin)


@cache
def report(pair: Path, *more: object, **options: Any) -> dict[str, Any]:
    """Return the JSON report; the same command is run once."""
    done = parity(pair, "--json", *more, **options)
    assert done.exit_code == 0, done.stderr
    return dict(json.loads(done.stdout))


def lines(tmp_path: Path, *texts: str) -> Path:
    """Write a file of these lines."""
    path = tmp_path / "lines.jsonl"
    path.write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
    return path


def problem(index: int) -> str:
    """Return a line of the bundled problems."""
    return PROBLEMS.read_text(encoding="utf-8").splitlines()[index]
