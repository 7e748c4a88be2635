"""The command `stepscore bench`."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from stepscore.cli.formats import TableFormat, format_option, print_table
from stepscore.cli.load_options import (
    limit_option,
    max_batch_tokens_option,
    provider_option,
    residency_option,
    threads_option,
)
from stepscore.enums import Provider, Residency

if TYPE_CHECKING:
    from stepscore.artifact.pair import Pair
    from stepscore.bench import Workload


@click.command()
@click.argument("pair", type=click.Path(path_type=Path))
@click.argument(
    "data",
    metavar="[DATA.jsonl]",
    required=False,
    type=click.Path(exists=True, path_type=Path),
)
@limit_option("Use")
@click.option(
    "--repeats", type=click.IntRange(min=1), default=3, show_default=True, help="Runs of each workload."
)
@provider_option
@residency_option
@max_batch_tokens_option
@threads_option
@format_option
def bench(
    *,
    pair: Path,
    data: Path | None,
    limit: int | None,
    repeats: int,
    provider: Provider,
    residency: Residency,
    max_batch_tokens: int | None,
    threads: int | None,
    table_format: TableFormat,
) -> None:
    """Benchmark a PAIR on this machine.

    It is timed on the solutions of DATA.jsonl, or on random tokens. Speed is input tokens per second through
    both models, log-probs of all tokens included. Where solutions have common prefixes, as samples of one
    problem do, the speedup from prefix sharing is printed too.

    \b
    Examples:
      stepscore bench PAIR
      stepscore bench PAIR solutions.jsonl --limit 64 --json | jq .timings
    """
    from stepscore.artifact.pair import Pair
    from stepscore.bench import BenchOptions, measure
    from stepscore.cli.bench_table import bench_table
    from stepscore.cli.streams import print_data
    from stepscore.jobs.provenance import Provenance, document

    if limit is not None and data is None:
        raise click.UsageError("--limit needs DATA.jsonl")
    options = BenchOptions(provider, threads, residency, max_batch_tokens, repeats)
    opened = Pair.open(pair)
    report = measure(opened, _workloads(opened, data, limit), options)
    origin = Provenance.of_pair(opened.fingerprint)
    if table_format is TableFormat.JSON:
        print_data(document(report, origin))
    else:
        print_table(sys.stdout, bench_table(report, origin), table_format)


def _workloads(pair: Pair, data: Path | None, limit: int | None) -> list[Workload]:
    from stepscore.bench import random_workloads, text_workload
    from stepscore.jobs.inputs.opening import open_input
    from stepscore.jobs.jsonl import read_lines

    shape = pair.manifest.architecture
    if data is None:
        return random_workloads(shape.vocab_size, shape.max_position_embeddings)
    with open_input(data) as file:
        workload = text_workload(data.name, itertools.islice(read_lines(file), limit), pair.encoder())
    if not workload.sequences:
        raise click.UsageError(f"{data} is empty")
    return [workload]
