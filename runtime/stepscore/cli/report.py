"""The command `stepscore report`."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from stepscore.cli.group import say
from stepscore.cli.json_mode import print_result
from stepscore.cli.load_options import json_option
from stepscore.cli.streams import is_standard_output, print_data
from stepscore.cli.thresholds import threshold_as_reward, threshold_options, warn_outside
from stepscore.enums import Equality, Series
from stepscore.errors import OutputExists, OutputUnwritable
from stepscore.fileio import write_atomically
from stepscore.visible import one_line

if TYPE_CHECKING:
    from stepscore.cli.results import ReportResult
    from stepscore.jobs.provenance import Provenance
    from stepscore.report.page import Origin, Page

MOST_NAME_CHARS = 300


@click.command()
@click.argument("scored", metavar="SCORED.jsonl", type=click.Path(exists=True, path_type=Path))
@click.option(
    "-o",
    "--output",
    metavar="REPORT.html|-",
    help="Output file; - is standard output.  [default: standard output; on a terminal SCORED.html]",
)
@threshold_options("Highlight", "the lowest negative reward")
@click.option(
    "--equality",
    type=click.Choice(Equality, case_sensitive=False),
    default="math",
    show_default=True,
    help="Equality of answers, for votes: mathematical, by rules and math-verify (stepscore[select]), or "
    "exact text.",
)
@json_option
def report(
    *,
    scored: Path,
    output: str | None,
    threshold: float | None,
    threshold_nats: float | None,
    equality: Equality,
    as_json: bool,
) -> None:
    """Write scored solutions as one HTML page.

    The page shows the output of `stepscore score`, steps coloured by reward, to sort and filter. Formulas are
    rendered. Samples of one problem are compared, with the one that each method of `select` selects. The page
    is self-contained: no external resources. For records scored with --tokens it also shows the log-ratio of
    every token.

    \b
    Example:
      stepscore report rewards.jsonl -o report.html
    """
    from stepscore.report.page import render

    page = _page(scored, threshold, threshold_nats, equality)
    text = render(page).encode()
    named = output is None and sys.stdout.isatty()
    if named:
        output = scored.with_suffix(".html").name
    printed = is_standard_output(output)
    if printed:
        print_data(text)
    else:
        _write(text, Path(output or ""))
    if named:
        say(f"wrote {output}, as standard output is a terminal; -o names another file")
    if as_json:
        print_result(_result(page, "-" if printed else output or ""), data_on_stdout=printed)


def _result(page: Page, output: str) -> ReportResult:
    from stepscore.cli.results import ReportResult

    errors = sum(record.error is not None for record in page.records)
    return ReportResult(output=output, records=len(page.records), errors=errors, threshold=page.threshold)


def _page(scored: Path, threshold: float | None, nats: float | None, equality: Equality) -> Page:
    from stepscore.cli.report_problems import problems
    from stepscore.jobs.provenance import Headers
    from stepscore.jobs.scored_records import open_scored, origin, read_scored
    from stepscore.report.formulas import Formulas
    from stepscore.report.page import Page
    from stepscore.report.solutions import solutions

    headers, formulas = Headers(str(scored)), Formulas()
    with open_scored(scored) as file:
        records = solutions(headers.without(_whole(file)), formulas)
        provenance = origin(headers, str(scored))
        limit = threshold_as_reward(threshold, nats, provenance.beta)
        if limit is not None:
            warn_outside(limit, [record.step_rewards for record in records])
        file.seek(0)
        lines = read_scored(file, Series.CUMULATIVE, Headers(str(scored)))
        samples, notes = problems(lines, records, equality, formulas)
    for note in notes:
        say(note)
    return Page(
        source=one_line(scored.name, MOST_NAME_CHARS),
        records=records,
        origin=_origin(provenance),
        threshold=limit,
        formulas=formulas.trees,
        problems=samples,
        notes=notes,
    )


def _origin(provenance: Provenance) -> Origin:
    from stepscore.report.page import Origin

    beta = None if provenance.beta is None else repr(provenance.beta)
    return Origin(provenance.pair, provenance.convention, beta, provenance.version, provenance.date)


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


def _write(text: bytes, path: Path) -> None:
    """Write a page atomically; replace an earlier page, but no other file."""
    from stepscore.report.page import GENERATOR

    if path.is_file() and GENERATOR.encode() not in _beginning(path):
        raise OutputExists(
            f"{path} already exists and is not a stepscore report", hint="give another output, or delete it"
        )
    write_atomically(path, [text])


def _beginning(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(2000)
    except OSError as error:
        raise OutputUnwritable(f"cannot read {path}: {error.strerror}") from None
