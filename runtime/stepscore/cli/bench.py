"""The command `stepscore bench`."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

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
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
)
@click.option("--limit", type=click.IntRange(min=1), help="Take the first N lines of DATA.jsonl only.")
@click.option(
    "--repeats", type=click.IntRange(min=1), default=3, show_default=True, help="How often each is timed."
)
@click.option(
    "--provider",
    type=click.Choice(Provider, case_sensitive=False),
    default="auto",
    show_default=True,
    help="What to run on.",
)
@click.option(
    "--residency",
    type=click.Choice(Residency, case_sensitive=False),
    default="auto",
    show_default=True,
    help="What is in memory at once; auto is the fastest that fits.",
)
@click.option(
    "--max-batch-tokens",
    type=click.IntRange(min=1),
    help="Tokens computed at a time.  [default: up to 2048, as memory allows]",
)
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads.  [default: all cores]")
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
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
    as_json: bool,
) -> None:
    """Time a PAIR on this machine: on your own solutions, or on random tokens.

    Speeds are input tokens a second through both models, log-probs of all tokens included. Where solutions
    begin alike, as samples of one problem do, "sharing" is how many times as fast that makes them.

    \b
    Examples:
      stepscore bench PAIR
      stepscore bench PAIR solutions.jsonl --limit 64 --json | jq .timings
    """
    import msgspec

    from stepscore.artifact.pair import Pair
    from stepscore.bench import Choices, facts, measure
    from stepscore.cli.tables import console, print_facts

    if limit is not None and data is None:
        raise click.UsageError("--limit belongs to DATA.jsonl")
    choices = Choices(provider, threads, residency, max_batch_tokens, repeats)
    opened = Pair.open(pair)
    report = measure(opened, _workloads(opened, data, limit), choices)
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(report), indent=2))
    else:
        print_facts(console(sys.stdout), facts(report))


def _workloads(pair: Pair, data: Path | None, limit: int | None) -> list[Workload]:
    from stepscore.bench import random_workloads, text_workload
    from stepscore.jobs.jsonl import read_lines
    from stepscore.prompt.encoder import PromptEncoder

    shape = pair.manifest.architecture
    if data is None:
        return random_workloads(shape.vocab_size, shape.max_position_embeddings)
    encoder = PromptEncoder(
        pair.tokenizer_json(), pair.manifest.template, max_tokens=shape.max_position_embeddings
    )
    with data.open("rb") as file:
        workload = text_workload(data.name, itertools.islice(read_lines(file), limit), encoder)
    if not workload.sequences:
        raise click.UsageError(f"{data} is empty")
    return [workload]
