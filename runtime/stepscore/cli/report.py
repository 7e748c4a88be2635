"""The command `stepscore report`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from stepscore.cli.score import finite
from stepscore.errors import OutputExists, OutputUnwritable
from stepscore.fileio import write_atomically

if TYPE_CHECKING:
    from stepscore.report.page import Page


@click.command()
@click.argument(
    "scored", metavar="SCORED.jsonl", type=click.Path(exists=True, dir_okay=False, path_type=Path)
)
@click.option(
    "-o", "--output", metavar="REPORT.html|-", help="Where to write; - (the default) is standard output."
)
@click.option(
    "--threshold", type=float, callback=finite, help="Mark the first step below this, not the lowest."
)
def report(scored: Path, output: str | None, threshold: float | None) -> None:
    """Make one HTML page of what `stepscore score` wrote: steps coloured by reward, to sort and filter.

    The page loads nothing and can be opened or sent as it is. Of records scored with --tokens it shows every
    token's log-ratio too.

    \b
    Example:
      stepscore report rewards.jsonl -o report.html
    """
    from stepscore.report.page import render

    text = render(_page(scored, threshold))
    if output is None or output == "-":
        click.echo(text, nl=False)
    else:
        _write(text, Path(output))


def _page(scored: Path, threshold: float | None) -> Page:
    from stepscore.jobs.resume import read_fingerprint
    from stepscore.report.page import Page
    from stepscore.report.solutions import solutions

    with scored.open("rb") as file:
        records = solutions(_whole(file))
    basis: dict[str, str] = {}
    with contextlib.suppress(OutputExists):  # what was piped or moved has no fingerprint beside it
        basis = read_fingerprint(scored)
    return Page(scored.name, records, basis.get("convention"), basis.get("beta"), threshold)


def _whole(lines: Iterable[bytes]) -> Iterator[bytes]:
    """Leave out a torn last line: a run that goes on can be looked at."""
    for line in lines:
        if not line.endswith(b"\n") and not _is_json(line):
            click.echo("the last line is not whole (is it being written?): left out", err=True)
            return
        yield line


def _is_json(line: bytes) -> bool:
    try:
        msgspec.json.decode(line)
    except (ValueError, RecursionError):
        return False
    return True


def _write(text: str, path: Path) -> None:
    """Put a page in the place of nothing or of an earlier page, whole or not at all."""
    from stepscore.report.page import GENERATOR

    if path.is_file() and GENERATOR.encode() not in _beginning(path):
        raise OutputExists(
            f"{path} is there already, and is no report", hint="give another output, or delete it"
        )
    write_atomically(path, [text.encode()])


def _beginning(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(2000)
    except OSError as error:
        raise OutputUnwritable(f"{path} cannot be read: {error.strerror}") from None
