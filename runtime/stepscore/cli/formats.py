"""The option --format: one table for people, pages, papers and programs; --json is short for its JSON."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from functools import wraps
from typing import TYPE_CHECKING, Any, TextIO, TypeVar

import click

from stepscore.cli.load_options import Words
from stepscore.visible import printable

if TYPE_CHECKING:
    from stepscore.tabular.table import Table

F = TypeVar("F", bound=Callable[..., Any])


class TableFormat(StrEnum):
    """Format in which a command prints its table."""

    TABLE = "table"
    MARKDOWN = "markdown"
    LATEX = "latex"
    CSV = "csv"
    JSON = "json"


def format_option(command: F) -> F:
    """Add --format and --json to a command, which receives `table_format`."""

    @click.option(
        "--format",
        "table_format",
        type=Words(TableFormat, case_sensitive=False),
        help="Print a table for the terminal, Markdown, LaTeX (booktabs), CSV, or JSON.  [default: table]",
    )
    @click.option("--json", "as_json", is_flag=True, help="Short for --format json.")
    @wraps(command)
    def chosen(*args: Any, table_format: TableFormat | None, as_json: bool, **kwargs: Any) -> Any:
        if as_json and table_format not in (None, TableFormat.JSON):
            raise click.UsageError("give --json or --format, not both")
        given = TableFormat.JSON if as_json else table_format or TableFormat.TABLE
        return command(*args, table_format=given, **kwargs)

    return chosen  # type: ignore[return-value]


def print_table(stream: TextIO, table: Table, table_format: TableFormat) -> None:
    """Print a table as text; JSON is the command's own document, with more in it."""
    from stepscore.tabular.renderers import as_csv, as_latex, as_markdown

    match table_format:
        case TableFormat.TABLE:
            _print_on_screen(stream, table)
            return
        case TableFormat.MARKDOWN:
            text = as_markdown(table)
        case TableFormat.LATEX:
            text = as_latex(table)
        case TableFormat.CSV:
            text = as_csv([table])
        case TableFormat.JSON:
            raise ValueError("JSON is printed by the command")
    click.echo(printable(text) if stream.isatty() else text, file=stream, nl=False)


def _print_on_screen(stream: TextIO, table: Table) -> None:
    from rich import box
    from rich.table import Table as Screen
    from rich.text import Text

    from stepscore.cli.tables import console
    from stepscore.tabular.renderers import facts_line

    screen = console(stream)
    shown = Screen(
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        safe_box=True,
        title=Text(printable(table.title)),
        title_justify="left",
    )
    for column in table.columns:
        shown.add_column(
            Text(column.name),
            justify="left" if column.is_text else "right",
            no_wrap=not column.is_text,
        )
    for index, row in enumerate(table.rows):
        if table.totals and index == len(table.rows) - table.totals:
            shown.add_section()
        shown.add_row(*(Text(printable(cell.text)) for cell in row))
    screen.print(shown)
    for note in [*table.notes, *([facts_line(table)] if table.facts else [])]:
        screen.print(Text(printable(note)))
