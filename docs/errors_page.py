"""docs/errors.md: every error, its code and exit code, what it means, and what to do."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from inspect import getdoc
from pathlib import Path

from stepscore.errors import StepscoreError

SOURCES = ("runtime/stepscore", "export/stepscore_export")
HEAD = """# Errors and exit codes

Generated from `stepscore.errors` and the hints in the code by `make docs`.

| exit code | meaning |
|--:|---|
| 0 | everything was scored |
| 1 | done, but some records have errors |
| 2 | usage: an option or argument is wrong |
| 3 | the pair, the checkpoint, the machine or the output was rejected |
| 4 | the output belongs to another run and cannot be resumed |
| 130 | interrupted; the same command resumes |

Every error is a `stepscore.StepscoreError` with `code` (stable), `message` and, often, a `hint`. The command
line prints `error: MESSAGE` and `hint: HINT` on stderr and ends with the exit code. A record that cannot be
scored becomes a line `{"id": ..., "error": {"code": ..., "message": ...}}`, and the run goes on.

"What to do" lists the hints that the code gives with an error; `...` stands for a name or a number.
"""


def page(root: Path) -> str:
    """Return the page: a section for each branch of the tree, a row for each of its classes."""
    hints = _hints(root)
    sections = []
    for branch in _below(StepscoreError):
        sections += [f"## {branch.__name__}\n", f"{getdoc(branch)} Exit code {branch.exit_code}.\n"]
        rows = [_row(each, hints) for each in [branch, *_below(branch)]]
        sections.append(
            "\n".join(["| code | class | meaning | what to do |", "|---|---|---|---|", *rows]) + "\n"
        )
    return "\n".join([HEAD, *sections])


def _below(base: type[StepscoreError]) -> list[type[StepscoreError]]:
    return [each for each in base.__subclasses__() if each.__module__ == StepscoreError.__module__]


def _row(error: type[StepscoreError], hints: dict[str, set[str]]) -> str:
    advice = "<br>".join(sorted(hints[error.__name__]))
    meaning = " ".join((getdoc(error) or "").split())
    cells = [f"`{error.code}`", error.__name__, meaning, advice]
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _hints(root: Path) -> dict[str, set[str]]:
    """Collect the hints that the sources construct each error with."""
    found: dict[str, set[str]] = defaultdict(set)
    for source in SOURCES:
        for path in sorted((root / source).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                    found[node.func.id].update(_texts(node))
    return found


def _texts(call: ast.Call) -> Iterator[str]:
    """Yield the literal texts of `hint=`, with ... for what is filled in."""
    for keyword in call.keywords:
        if keyword.arg != "hint":
            continue
        for node in ast.walk(keyword.value) if isinstance(keyword.value, ast.IfExp) else [keyword.value]:
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield _escaped(node.value)
            elif isinstance(node, ast.JoinedStr):
                parts = (part.value if isinstance(part, ast.Constant) else "..." for part in node.values)
                yield _escaped("".join(map(str, parts)))


def _escaped(text: str) -> str:
    return text.replace("<", "&lt;")
