"""The command `stepscore score`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from stepscore.cli.json_mode import print_result
from stepscore.cli.load_options import (
    json_option,
    limit_option,
    load_options,
    output_file_option,
    overwrite_option,
    quiet_option,
    reading_options,
)
from stepscore.cli.run_job import load_scorer, run_job
from stepscore.cli.streams import is_standard_output
from stepscore.cli.thresholds import threshold_as_reward, threshold_options
from stepscore.errors import StepscoreError

if TYPE_CHECKING:
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
    "--dry-run",
    is_flag=True,
    help="Print token counts, batches, memory and time, measured on a few records; score nothing else.",
)
@quiet_option
@json_option
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
    as_json: bool,
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
      stepscore score PAIR solutions.jsonl -o rewards.jsonl --json | jq .errors
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
            _print_problem(scorer, problem, steps, below, as_json=as_json)
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
        from stepscore.cli.dry_run import print_dry_run

        with open_input(source) as lines:
            print_dry_run(pair, lines, options, load, quiet=quiet, as_json=as_json)
        return
    target = output or "-"
    with open_input(source) as lines, load_scorer(pair, load) as scorer:
        done = run_job(scorer, lines, target, options, quiet=quiet, summary=not (quiet or as_json))
    if as_json:
        print_result(done.result(source, target), data_on_stdout=is_standard_output(target))
    ctx.exit(done.exit_code)


def _print_problem(
    scorer: Scorer, problem: str, steps: tuple[str, ...], threshold: float | None, *, as_json: bool
) -> None:
    from stepscore.cli.tables import console, print_steps, suspicious_step
    from stepscore.records import Record

    ((_, outcome),) = scorer.stream([(None, Record(problem, steps))])
    if isinstance(outcome, StepscoreError):
        raise outcome
    if not as_json:
        basis = f"convention {scorer.convention}, beta {scorer.beta:g}"
        print_steps(console(sys.stdout), steps, outcome, threshold, basis)
        return
    from stepscore.cli.results import SolutionResult
    from stepscore.jobs.provenance import Provenance
    from stepscore.jobs.schema import ScoredLine

    print_result(
        SolutionResult(
            stepscore=Provenance.of_run(scorer.fingerprint()),
            problem=problem,
            steps=list(steps),
            threshold=threshold,
            marked_step=suspicious_step(outcome.step_rewards, threshold),
            scored=ScoredLine.of(0, outcome),
        )
    )
