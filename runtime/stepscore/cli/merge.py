"""The command `stepscore merge`."""

from __future__ import annotations

from pathlib import Path

import click

from stepscore.cli.group import say
from stepscore.cli.json_mode import print_result
from stepscore.cli.load_options import json_option, quiet_option


@click.command()
@click.argument("source", metavar="IN|-", type=click.Path(exists=True, allow_dash=True))
@click.argument(
    "shards",
    metavar="SHARD.jsonl...",
    nargs=-1,
    required=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
)
@click.option(
    "-o",
    "--output",
    metavar="OUT.jsonl|OUT.parquet",
    required=True,
    type=click.Path(path_type=Path, dir_okay=False),
    help="Output file.",
)
@click.option("--overwrite", is_flag=True, help="Replace the output if a job wrote it.")
@quiet_option
@json_option
@click.pass_context
def merge(
    ctx: click.Context,
    /,
    *,
    source: str,
    shards: tuple[Path, ...],
    output: Path,
    overwrite: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Merge the outputs of all shards of an input.

    The output has the lines of IN in order, as one run of `stepscore score` would have written them.
    Every line is compared with the input. A shard that is missing, given twice, unfinished, edited, or of
    another pair, beta, convention or input is named, and nothing is written (exit code 4).

    Exit code 1: some records have errors. No model is run.

    \b
    Examples:
      stepscore score PAIR in.jsonl --shard 1/2 -o shard-1.jsonl
      stepscore score PAIR in.jsonl --shard 2/2 -o shard-2.jsonl
      stepscore merge in.jsonl shard-1.jsonl shard-2.jsonl -o rewards.jsonl
    """
    from stepscore.jobs.inputs.opening import open_input
    from stepscore.jobs.merge import merge_to_file
    from stepscore.jobs.parquet.job import is_parquet, merge_to_parquet

    write = merge_to_parquet if is_parquet(str(output)) else merge_to_file
    with open_input(source) as lines:
        tally = write(lines, shards, output, overwrite=overwrite)
    if as_json:
        from stepscore.cli.results import MergeResult

        result = MergeResult(
            output=str(output), shards=len(shards), records=tally.records, errors=tally.errors
        )
        print_result(result)
    elif not quiet:
        errors = f", {tally.errors:,} of them with errors" if tally.errors else ""
        say(f"{tally.records:,} records of {len(shards):,} shards{errors}")
    ctx.exit(1 if tally.errors else 0)
