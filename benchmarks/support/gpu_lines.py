"""Lines of the GPU benchmark: one JSON object a part, appended as soon as it is measured.

A file holds the lines of one kind of card, of one run or of several short ones. A part that failed or was
skipped leaves a line that says so; it counts as measured only when a line without that follows.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.support.gpu_plan import Part, PartName, floor_precision

Line = Mapping[str, Any]
UNMEASURED = frozenset({"failed", "skipped"})


def lines_name(card: str) -> str:
    """Return the name of the file of a card.

    >>> lines_name("NVIDIA H200"), lines_name("NVIDIA H100 80GB HBM3"), lines_name("cpu")
    ('gpu_h200.jsonl', 'gpu_h100_80gb_hbm3.jsonl', 'gpu_cpu.jsonl')
    """
    words = re.findall("[a-z0-9]+", card.lower())
    return f"gpu_{'_'.join(word for word in words if word != 'nvidia')}.jsonl"


def read_lines(path: Path) -> list[Line]:
    """Return the lines of a file, none where it does not exist; a line that was cut is left out."""
    return parsed(path.read_text(encoding="utf-8")) if path.exists() else []


def parsed(text: str) -> list[Line]:
    """Return the lines of a text.

    >>> parsed('{"part": "facts"}\\n{"part": "flo')
    [{'part': 'facts'}]
    """
    found = []
    for line in text.splitlines():
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return found


def gpu_results(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the results of cards by the name of their file; a file without facts of its machine is none."""
    results = {}
    for path in sorted(folder.glob("gpu_*.jsonl")):
        lines = [line for line in read_lines(path) if "card" in line]  # others are of probes
        facts = next((line for line in reversed(lines) if line["part"] == PartName.FACTS), {})
        if "machine" in facts:
            named = {"gpu": facts["gpu"]} if "gpu" in facts else {}
            own = {"machine": facts["machine"], "quick": facts["quick"]}
            results[path.name] = own | named | {"lines": lines}
    return results


def append_line(path: Path, line: Line) -> None:
    """Append a line, after the end of one that was cut."""
    path.parent.mkdir(parents=True, exist_ok=True)
    cut = path.exists() and not path.read_bytes().endswith(b"\n")
    with path.open("a", encoding="utf-8") as file:
        file.write(("\n" if cut else "") + json.dumps(line) + "\n")


def key_of(line: Line) -> tuple[Part, int]:
    """Return the part that a line is of, and the number of layers of the models."""
    return Part(PartName(line["part"]), tuple(line["arguments"])), line["layers"]


def measured(lines: Iterable[Line]) -> dict[tuple[Part, int], Line]:
    """Return the last line of each part that was measured, by part and layers."""
    return {key_of(line): line for line in lines if not UNMEASURED & line.keys()}


def unmeasured(lines: Sequence[Line]) -> list[Line]:
    """Return the last line of each part that failed or was skipped, and never measured."""
    done = measured(lines)
    last = {key_of(line): line for line in lines if key_of(line) not in done}
    return list(last.values())


def with_shares(line: Line, lines: Iterable[Line]) -> Line:
    """Add the share of the sustained floor to the windows of a line of the engine.

    share = tokens/s of the window / tokens/s of the floor at as many rows, or at the most rows measured that
    are not more. Lines without windows, or whose floor was not measured, are returned as they are.
    """
    if "windows" not in line:
        return line
    part, layers = key_of(line)
    floor = measured(lines).get((Part.of(PartName.FLOOR, floor_precision(part.arguments[0])), layers))
    if floor is None:
        return line
    return {**line, "windows": [_with_share(window, floor["rows"]) for window in line["windows"]]}


def _with_share(window: Line, floor: Sequence[Line]) -> Line:
    fitting = [row for row in floor if row["rows"] <= window["tokens"]]
    if "median" not in window or not fitting:
        return window
    most = max(fitting, key=lambda row: int(row["rows"]))
    share = window["median"] / most["sustained"]["tokens_per_second"]
    return {**window, "share_of_floor": round(share, 4)}
