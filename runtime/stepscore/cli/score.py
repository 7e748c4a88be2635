"""The command `stepscore score`."""

from __future__ import annotations

import contextlib
import sys
import time
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import click

from stepscore.cli.group import INTERRUPTED, say
from stepscore.cli.load_options import (
    limit_option,
    load_options,
    output_file_option,
    overwrite_option,
    quiet_option,
    reading_options,
)
from stepscore.cli.streams import is_standard_output, standard_output
from stepscore.cli.thresholds import threshold_as_reward, threshold_options
from stepscore.errors import StepscoreError

if TYPE_CHECKING:
    from stepscore.jobs.job import JobOptions, Tally
    from stepscore.jobs.shards import Shard
    from stepscore.scorer import Scorer


def _shard(ctx: click.Context, param: click.Parameter, value: str | None) -> Shard | None:
    if value is None:
        return None
    from stepscore.jobs.shards import Shard

    try:
        return Shard.of(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


@click.command()
@click.argument("pair", type=click.Path(path_type=Path))
@click.argument(
    "source",
    metavar="[IN|-]",
    required=False,
    type=click.Path(exists=True, allow_dash=True),
)
@output_file_option("OUT.jsonl|OUT.parquet")
@click.option("--problem", metavar="TEXT", help="Score one solution of this problem and print a table.")
@click.option(
    "--step",
    "steps",
    metavar="TEXT",
    multiple=True,
    help="Add a step to the solution of --problem; repeat in order.",
)
@threshold_options("Highlight", "the lowest negative reward")
@reading_options
@load_options
@click.option("--tokens", is_flag=True, help="Add the log-probs of both models for every token.")
@limit_option("Score", least=0)
@click.option(
    "--shard",
    metavar="I/N",
    callback=_shard,
    help="Score part I of N, whole problems; `stepscore merge` puts the parts together.",
)
@overwrite_option
@click.option(
    "--dry-run", is_flag=True, help="Print token counts, batches and estimated memory; load no model."
)
@quiet_option
@click.pass_context
def score(
    ctx: click.Context,
    /,
    *,
    pair: Path,
    source: str | None,
    output: str | None,
    problem: str | None,
    steps: tuple[str, ...],
    threshold: float | None,
    threshold_nats: float | None,
    problem_field: str | None,
    steps_field: str | None,
    split: bool,
    limit: int | None,
    shard: Shard | None,
    overwrite: bool,
    dry_run: bool,
    quiet: bool,
    **load: Any,
) -> None:
    """Score a file of solutions, or one solution given as options.

    IN is JSON Lines, also as .gz or .zst, Parquet, Arrow, or a folder of `datasets`, found by content. A line
    or row is {"problem": "...", "steps": ["...", "..."]}, optionally with an "id" and other fields; the same
    line of OUT.jsonl, behind a header, adds the rewards. Other names are accepted for both (question, query,
    prompt; solution, answer, completions; messages), or named by --problem-field and --steps-field. A line of
    token ids, {"prompt_token_ids": [...], "response_token_ids": [...]}, is scored without tokenizing. Run the
    same command again to resume an interrupted run.

    \b
    Examples:
      stepscore score PAIR solutions.jsonl -o rewards.jsonl
      stepscore score PAIR answers.jsonl --problem-field task --steps-field output --split -o rewards.jsonl
      stepscore score PAIR solutions.parquet | jq -c '.step_rewards // empty'
      stepscore score PAIR --problem "1+1?" --step "1+1 is 3." --step "So 3."
    """
    if problem is not None or steps:
        of_files = (
            source,
            output,
            limit,
            shard,
            problem_field,
            steps_field,
            split or None,
            overwrite or None,
        )
        if any(option is not None for option in of_files):
            raise click.UsageError(
                "--problem and --step score one solution: drop IN and the options for files, such as "
                "--output, --limit, --shard and --split"
            )
        if problem is None or not steps:
            raise click.UsageError("--problem needs at least one --step, and --step needs --problem")
        if dry_run:
            raise click.UsageError("--dry-run needs IN")
        with load_scorer(pair, load) as scorer:
            below = threshold_as_reward(threshold, threshold_nats, scorer.beta)
            _print_problem(scorer, problem, steps, below)
        return
    if source is None:
        raise click.UsageError("give IN, - for standard input, or --problem and --step")
    if threshold is not None or threshold_nats is not None:
        raise click.UsageError("--threshold and --threshold-nats need --problem")
    from stepscore.jobs.inputs.opening import open_input
    from stepscore.jobs.job import JobOptions
    from stepscore.records import Reading

    options = JobOptions(limit, load["tokens"], Reading(problem_field, steps_field, split), overwrite, shard)
    if dry_run:
        with open_input(source) as lines:
            _print_dry_run(pair, lines, options, load)
        return
    with open_input(source) as lines, load_scorer(pair, load) as scorer:
        ctx.exit(run_job(scorer, lines, output or "-", options, quiet=quiet))


def load_scorer(pair: Path, load: dict[str, Any]) -> Scorer:
    """Open a pair with the values of `load_options`."""
    from stepscore.scorer import Scorer

    return Scorer.load(pair, **load)


def _print_problem(scorer: Scorer, problem: str, steps: tuple[str, ...], threshold: float | None) -> None:
    from stepscore.cli.tables import console, print_steps
    from stepscore.records import Record

    ((_, outcome),) = scorer.stream([(None, Record(problem, steps))])
    if isinstance(outcome, StepscoreError):
        raise outcome
    basis = f"convention {scorer.convention}, beta {scorer.beta:g}"
    print_steps(console(sys.stdout), steps, outcome, threshold, basis)


def _print_dry_run(pair: Path, lines: BinaryIO, options: JobOptions, load: dict[str, Any]) -> None:
    from stepscore.cli.dry_run import dry_run_facts
    from stepscore.cli.tables import console, print_facts

    print_facts(console(sys.stdout), dry_run_facts(pair, lines, options, load))


def run_job(scorer: Scorer, lines: BinaryIO, output: str, options: JobOptions, *, quiet: bool) -> int:
    """Run a job and return its exit code."""
    from stepscore.jobs.job import Tally, run_to_file, run_to_stream
    from stepscore.jobs.parquet.job import is_parquet, run_to_parquet
    from stepscore.jobs.progress import shown

    tally = Tally()
    started = time.monotonic()
    resumable = _is_resumable(output)
    try:
        with contextlib.nullcontext() if quiet else shown(tally, _total(lines, options), sys.stderr):
            if resumable:
                run = run_to_parquet if is_parquet(output) else run_to_file
                run(scorer, lines, Path(output), tally, options)
            else:
                with _unbuffered(output) as out:
                    run_to_stream(scorer, lines, out, tally, options)
    except KeyboardInterrupt:
        without = " without --overwrite" if options.overwrite else ""
        again = f"; run the same command again{without} to resume" if resumable else ""
        say(f"interrupted after {tally.records} records{again}")
        return INTERRUPTED
    if not quiet:
        say(_closing_line(tally, output, time.monotonic() - started))
    return 1 if tally.errors else 0


def _unbuffered(output: str) -> contextlib.AbstractContextManager[BinaryIO]:
    """Open a pipe or a device unbuffered: closing a buffer would flush, and fail a second time."""
    return standard_output() if is_standard_output(output) else open(output, "wb", buffering=0)


def _is_resumable(output: str) -> bool:
    """Return whether the output is a file, not a pipe or a device."""
    path = Path(output)
    return not is_standard_output(output) and (path.is_file() or path.is_dir() or not path.exists())


def _total(lines: BinaryIO, options: JobOptions) -> int | None:
    """Return the number of records of a plain file or a table, at most the limit; of a pipe, the limit.

    That of a shard is not known before all lines are parsed.
    """
    from stepscore.jobs.inputs.opening import is_file
    from stepscore.jobs.jsonl import not_empty, read_lines

    if options.shard is not None:
        return None
    limit = options.limit
    known: int | None = getattr(lines, "num_rows", None)  # of a table
    if known is not None:
        return known if limit is None else min(known, limit)
    if not is_file(lines) or not lines.seekable():
        return limit
    start, count = lines.tell(), 0
    with contextlib.suppress(StepscoreError):  # the run itself names an input that cannot be read
        for _ in islice(not_empty(read_lines(lines)), limit):
            count += 1
    lines.seek(start)
    return count


def _closing_line(tally: Tally, output: str, seconds: float) -> str:
    from stepscore.jobs.progress import summary

    if tally.resumed and tally.resumed == tally.records:
        errors = f", {tally.errors.total()} of them with errors" if tally.errors else ""
        return f"{output} is already complete: {tally.records:,} records{errors}"
    return summary(tally, seconds)
