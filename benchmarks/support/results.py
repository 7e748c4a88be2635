"""Result files, rows on stderr, and rows that child processes measure."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.support.gpu_lines import gpu_results
from benchmarks.support.machine import facts

RESULTS = Path(__file__).parents[1] / "results"
QUICK_RESULTS = Path(__file__).parents[2] / "out" / "benchmarks-quick"
"""Where --quick writes: its results never replace a measurement."""


def write_result(name: str, result: dict[str, Any], *, quick: bool, folder: Path | None = None) -> Path:
    """Write NAME.json with the machine's facts first, to the folder given or the usual one."""
    folder = folder or (QUICK_RESULTS if quick else RESULTS)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    path.write_text(json.dumps({"machine": facts(), **result}, indent=2) + "\n", encoding="utf-8")
    return path


def read_results(folder: Path) -> dict[str, dict[str, Any]]:
    """Return every result of a folder by the name of its file, without the suffix, and those of cards."""
    found = {
        path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))
    }
    return found | gpu_results(folder)


def logged(row: dict[str, Any]) -> dict[str, Any]:
    """Print a row on stderr as JSON, and return it."""
    print(json.dumps(row), file=sys.stderr, flush=True)
    return row


def measured_in_child(module: str, *arguments: object) -> dict[str, Any]:
    """Run `python -m MODULE --child ARGUMENTS` and return the row it prints: its memory is its own."""
    command = [sys.executable, "-m", module, "--child", *map(str, arguments)]
    row: dict[str, Any] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    return row
