"""The tables of result files, and how their figures are written."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from benchmarks.support.machine import integer_unit

Result = Mapping[str, Any]
Results = Mapping[str, Result]
"""Results by the name of their file, without its suffix."""


@dataclass(frozen=True, slots=True)
class Table:
    """A caption (or none), a heading for each column, and rows of cells; the first column is text.

    A folded table holds what few readers need (rounds, spread); pages show its caption until it is opened.
    """

    caption: str
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""
    folded: bool = False


def markdown(table: Table) -> str:
    """Return the table between its caption and its note; a folded one in a <details> element.

    >>> print(markdown(Table("Speed", ["engine", "tokens/s"], [["stepscore", "12"]], note="One run.")))
    Speed
    <BLANKLINE>
    | engine | tokens/s |
    |---|--:|
    | stepscore | 12 |
    <BLANKLINE>
    One run.
    >>> print(markdown(Table("Spread", ["engine"], [["stepscore"]], folded=True)))
    <details><summary>Spread</summary>
    <BLANKLINE>
    | engine |
    |---|
    | stepscore |
    <BLANKLINE>
    </details>
    """
    rows = [_row(table.headings), "|---" + "|--:" * (len(table.headings) - 1) + "|", *map(_row, table.rows)]
    paragraphs = ["\n".join(rows), *([table.note] if table.note else [])]
    if table.folded:
        summary = f"<details><summary>{escape(table.caption, quote=False)}</summary>"
        return "\n\n".join([summary, *paragraphs, "</details>"])
    return "\n\n".join([*([table.caption] if table.caption else []), *paragraphs])


def of_kind(results: Results, kind: str) -> list[Result]:
    """Return the results whose name begins with the kind, sorted by name."""
    return [results[name] for name in sorted(results) if name.startswith(kind)]


def shape_name(result: Result) -> str:
    """Return the shape a result was measured on, and how much of it.

    >>> shape_name({"shape": {"name": "1.5b", "num_hidden_layers": 8}, "all_layers": 28})
    'Qwen2.5-1.5B shape, 8 of 28 layers'
    >>> shape_name({"shape": {"name": "0.5b", "num_hidden_layers": 24}, "all_layers": 24, "real": True})
    'real Qwen2.5-0.5B pair'
    """
    name, layers, total = result["shape"]["name"], result["shape"]["num_hidden_layers"], result["all_layers"]
    some = f", {layers} of {total} layers" if layers != total else ""
    if result.get("real"):
        return f"real Qwen2.5-{name.upper()} pair"
    return f"Qwen2.5-{name.upper()} shape{some}"


def machine_name(result: Result) -> str:
    """Return what a result was measured on: the GPU, or the instructions of the CPU's integer GEMMs."""
    if "gpu" in result:
        return str(result["gpu"]["name"])
    return f"CPU with {integer_unit(result['machine']['cpu_features'], amx=result.get('amx', True))}"


def note_of(result: Result) -> str:
    """Return what a reader has to know about a run, as its result says it; or nothing."""
    return f"Note: {result['note']}." if "note" in result else ""


def percent(share: float, decimals: int | None = None) -> str:
    """Return a share in percent; unless `decimals` is given, two below ten, one below thirty, else none.

    >>> percent(0.01236), percent(0.125), percent(0.77), percent(0.9975, 2)
    ('1.24 %', '12.5 %', '77 %', '99.75 %')
    """
    value = 100 * share
    if decimals is None:
        decimals = 2 if value < 9.995 else 1 if value < 30 else 0
    return f"{value:.{decimals}f} %"


def spread(rate: Mapping[str, float], decimals: int = 0) -> str:
    """Return the slowest and the fastest of repeats.

    >>> spread({"slowest": 1234.4, "fastest": 1300.2})
    '1,234 to 1,300'
    """
    return f"{rate['slowest']:,.{decimals}f} to {rate['fastest']:,.{decimals}f}"


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
