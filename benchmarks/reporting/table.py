"""What a table is, and how its figures are written."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Result = Mapping[str, Any]
Results = Mapping[str, Result]
"""Results by the name of their file, without its suffix."""


@dataclass(frozen=True, slots=True)
class Table:
    """What it shows in a line, a heading for each column, and rows of cells; the first column is text."""

    caption: str
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]


def markdown(table: Table) -> str:
    """Return the table with its caption above.

    >>> print(markdown(Table("Speed", ["engine", "tokens/s"], [["ours", "12"]])))
    Speed
    <BLANKLINE>
    | engine | tokens/s |
    |---|--:|
    | ours | 12 |
    """
    lines = [
        _line(table.headings),
        "|---" + "|--:" * (len(table.headings) - 1) + "|",
        *map(_line, table.rows),
    ]
    return "\n".join([table.caption, "", *lines])


def of_kind(results: Results, kind: str) -> list[Result]:
    """Return the results whose name begins with the kind, sorted by name."""
    return [results[name] for name in sorted(results) if name.startswith(kind)]


def shape_name(result: Result) -> str:
    """Return the shape a result was measured on, and how much of it.

    >>> shape_name({"shape": {"name": "1.5b", "num_hidden_layers": 8}, "all_layers": 28})
    'Qwen2.5-1.5B shape, 8 of 28 layers'
    """
    name, layers, total = result["shape"]["name"], result["shape"]["num_hidden_layers"], result["all_layers"]
    some = f", {layers} of {total} layers" if layers != total else ""
    return f"Qwen2.5-{name.upper()} shape{some}"


def percent(share: float) -> str:
    """Return a share in percent: two decimals below ten, one below thirty.

    >>> percent(0.01236), percent(0.125), percent(0.77)
    ('1.24 %', '12.5 %', '77 %')
    """
    value = 100 * share
    return f"{value:.{2 if value < 9.995 else 1 if value < 30 else 0}f} %"


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
