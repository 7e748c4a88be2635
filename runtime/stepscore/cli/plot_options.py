"""Options that all kinds of plots share."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import reduce
from pathlib import Path
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])

UNITS = {"in": 1.0, "mm": 1 / 25.4, "cm": 1 / 2.54}
DATA_SUFFIXES = (".csv", ".json")
FIGURE_SUFFIXES = (".pdf", ".svg", ".png")


def width_in_inches(ctx: click.Context, param: click.Parameter, value: str) -> float:
    """Parse 3.25in, 84mm or 8.4cm."""
    found = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*(in|mm|cm)\s*", value, re.ASCII)
    inches = float(found[1]) * UNITS[found[2]] if found else 0.0
    if not 1 <= inches <= 20:
        raise click.BadParameter(f"invalid width {value[:40]!r}; use e.g. 3.25in or 84mm, 1 to 20 inches")
    return inches


def known_suffixes(ctx: click.Context, param: click.Parameter, value: tuple[Path, ...]) -> tuple[Path, ...]:
    """Validate that the name of every output says its format."""
    for path in value:
        if path.suffix.lower() not in (*FIGURE_SUFFIXES, *DATA_SUFFIXES):
            known = ", ".join((*FIGURE_SUFFIXES, *DATA_SUFFIXES))
            raise click.BadParameter(f"the name {path.name[:80]!r} does not end in one of {known}")
    return value


PLOT_OPTIONS = (
    click.argument(
        "sources",
        metavar="SCORED.jsonl...",
        nargs=-1,
        required=True,
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
    ),
    click.option(
        "-o",
        "--output",
        "outputs",
        metavar="FIG.pdf|svg|png|csv|json",
        multiple=True,
        required=True,
        callback=known_suffixes,
        type=click.Path(path_type=Path, dir_okay=False),
        help="Output file, by its suffix a figure or the numbers; give it again for another one.",
    ),
    click.option(
        "--width",
        default="3.25in",
        show_default=True,
        callback=width_in_inches,
        help="Width of the figure: one column.",
    ),
    click.option(
        "--name",
        "names",
        multiple=True,
        help="Name of a file in the legend, once for each.  [default: its name up to the first dot]",
    ),
    click.option("--json", expose_value=False, is_flag=True, help="Print the result, or the error, as JSON."),
)


def plot_options(command: F) -> F:
    """Add the files, --output, --width, --name and --json, which `write_plot` prints, to a command."""
    return reduce(lambda decorated, option: option(decorated), reversed(PLOT_OPTIONS), command)
