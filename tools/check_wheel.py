"""Install the wheel in a clean environment of each Python, and score there a pair exported elsewhere.

    python tools/check_wheel.py WHEEL PAIR EXPECTED.jsonl INPUT.jsonl --python python3.11 python3.13

Each environment gets `stepscore[cpu]` and nothing else. In an empty folder it runs `stepscore --help`,
`doctor` and `verify`, scores INPUT.jsonl, and compares the rewards with EXPECTED.jsonl, which the exporting
environment scored. It prints a line of JSON for each Python; the exit status is 1 where one of them failed.
It needs the standard library only, so that any Python runs it. `make check-wheel` builds its arguments.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

TOLERANCE = 1e-3
"""Largest difference of a step reward: another ONNX Runtime may add in another order."""
SHOWN = ("onnxruntime", "numpy", "tokenizers", "msgspec")


class CheckFailed(Exception):
    """A command failed, or rewards differ."""


def main() -> int:
    """Check the wheel with each Python."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for name in ("wheel", "pair", "expected", "input"):
        parser.add_argument(name, type=lambda text: Path(text).resolve())
    parser.add_argument("--python", nargs="+", default=[sys.executable], help="interpreters to check with")
    options = parser.parse_args()
    failed = False
    for python in options.python:
        row: dict[str, Any] = {"python": python, "ok": True}
        with tempfile.TemporaryDirectory() as folder:
            try:
                row |= checked(python, options, Path(folder))
            except CheckFailed as error:
                failed, row = True, {**row, "ok": False, "failed": str(error)}
        print(json.dumps(row), flush=True)
    return int(failed)


def checked(python: str, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Install and run the wheel; return the versions used and the largest difference of a reward."""
    environment, empty = folder / "environment", folder / "empty"
    empty.mkdir()
    run([python, "-m", "venv", str(environment)], empty)
    installed = environment / "bin" / "python"
    run([str(installed), "-m", "pip", "install", "--quiet", f"{options.wheel}[cpu]"], empty)
    stepscore = str(environment / "bin" / "stepscore")
    output = empty / "scored.jsonl"
    run([stepscore, "--help"], empty)
    run([stepscore, "doctor", str(options.pair)], empty)
    run([stepscore, "verify", str(options.pair)], empty)
    run([stepscore, "score", str(options.pair), str(options.input), "-o", str(output)], empty)
    difference, steps = compared(rewards(options.expected), rewards(output))
    if difference > TOLERANCE:
        raise CheckFailed(f"a step reward differs by {difference:.3g} from that of the exporting environment")
    code = f"from importlib.metadata import version; print(*[version(name) for name in {SHOWN}])"
    versions = run([str(installed), "-c", code], empty).split()
    release = run([str(installed), "-c", "import platform; print(platform.python_version())"], empty).strip()
    return {
        "version": release,
        "packages": dict(zip(SHOWN, versions, strict=True)),
        "steps": steps,
        "largest_difference": difference,
    }


def run(command: list[str], folder: Path) -> str:
    """Return what a command prints; raise CheckFailed with its last lines where it fails."""
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    except OSError as error:
        raise CheckFailed(f"{command[0]}: {error.strerror}") from None
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines()[-5:]
        raise CheckFailed(f"{' '.join(command[:4])}: exit status {done.returncode}: {' / '.join(lines)}")
    return done.stdout


def rewards(path: Path) -> dict[str, list[float]]:
    """Return the step rewards of each record by its id; the header has none."""
    with path.open(encoding="utf-8") as file:
        lines = [json.loads(line) for line in file]
    return {line["id"]: line["step_rewards"] for line in lines if "step_rewards" in line}


def compared(expected: dict[str, list[float]], found: dict[str, list[float]]) -> tuple[float, int]:
    """Return the largest difference of a step reward, and their number; the same records must have them."""
    counts = [{name: len(each) for name, each in scored.items()} for scored in (expected, found)]
    if not expected or counts[0] != counts[1]:
        raise CheckFailed(
            f"{len(found)} records were scored, and {len(expected)} in the exporting environment"
        )
    pairs = [pair for name, each in expected.items() for pair in zip(each, found[name], strict=True)]
    return max(abs(one - other) for one, other in pairs), len(pairs)


if __name__ == "__main__":
    sys.exit(main())
