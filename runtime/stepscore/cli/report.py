"""The command `stepscore report`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from stepscore.cli.load_options import output_file_option, threshold_option
from stepscore.errors import OutputExists, OutputUnwritable
from stepscore.fileio import write_atomically

if TYPE_CHECKING:
    from stepscore.report.page import Page


@click.command()
@click.argument(
    "scored", metavar="SCORED.jsonl", type=click.Path(exists=True, dir_okay=False, path_type=Path)
)
@output_file_option("REPORT.html")
@threshold_option
def report(scored: Path, output: str | None, threshold: float | None) -> None:
    """Write scored solutions as one HTML page.

    The page shows the output of `stepscore score`, steps coloured by reward, to sort and filter. It is
    self-contained: no external resources. For records scored with --tokens it also shows the log-ratio of
    every token.

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
    with contextlib.suppress(OutputExists):  # an output that was piped or moved has no fingerprint
        basis = read_fingerprint(scored)
    return Page(scored.name, records, basis.get("convention"), basis.get("beta"), threshold)


def _whole(lines: Iterable[bytes]) -> Iterator[bytes]:
    """Skip a torn last line, so that the output of a running job can be shown."""
    for line in lines:
        if not line.endswith(b"\n") and not _is_json(line):
            click.echo("skipped the last line: it is incomplete (is the file being written?)", err=True)
            return
        yield line


def _is_json(line: bytes) -> bool:
    try:
        msgspec.json.decode(line)
    except (ValueError, RecursionError):
        return False
    return True


def _write(text: str, path: Path) -> None:
    """Write a page atomically; replace an earlier page, but no other file."""
    from stepscore.report.page import GENERATOR

    if path.is_file() and GENERATOR.encode() not in _beginning(path):
        raise OutputExists(
            f"{path} already exists and is not a stepscore report", hint="give another output, or delete it"
        )
    write_atomically(path, [text.encode()])


def _beginning(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(2000)
    except OSError as error:
        raise OutputUnwritable(f"cannot read {path}: {error.strerror}") from None
