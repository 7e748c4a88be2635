"""The command `stepscore select`."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import click

from stepscore.cli.formats import TableFormat, format_option, print_table
from stepscore.cli.group import name_failures
from stepscore.cli.load_options import output_file_option, positive
from stepscore.cli.selection_options import (
    equality_option,
    method_option,
    reducer_option,
    seed_option,
    sizes_option,
)
from stepscore.cli.series import series_option, warn_of_prompts
from stepscore.cli.streams import is_standard_output
from stepscore.enums import Equality, Method, Reducer, Series
from stepscore.errors import InputError, OutputExists

if TYPE_CHECKING:
    from stepscore.selection.best_of_n import Problem, SelectionMethod


@click.command()
@click.argument(
    "source",
    metavar="SCORED.jsonl|-",
    type=click.Path(exists=True, allow_dash=True),
)
@output_file_option("CHOSEN.jsonl")
@method_option
@series_option(Series.CUMULATIVE, "Compute the score from")
@reducer_option
@click.option(
    "--temperature",
    type=float,
    callback=positive,
    help="Add `probability`, sigmoid(score / temperature) of the selected sample; the votes of --method "
    "weighted have this weight.  [default: no probability; weighted: 1]",
)
@sizes_option
@equality_option
@seed_option
@format_option
@click.pass_context
def select(
    ctx: click.Context,
    /,
    *,
    source: str,
    output: str | None,
    method: Method,
    series: Series,
    reducer: Reducer,
    temperature: float | None,
    sizes: list[int] | None,
    equality: Equality,
    seed: int,
    table_format: TableFormat,
) -> None:
    """Select one solution per problem by reward.

    SCORED.jsonl is the output of `stepscore score`; the method is best-of-N or voting. Records with the same
    problem text are samples of one problem, unless their "problem_id" differs. The answer of a record is the
    content of its last \\boxed{}, else its own "answer". Ties go to the earliest sample. The selected record
    is written as it was scored, with a field "selection" added.

    Where correctness is known ("final_answer_correct", else "final_answer" compared with the answer),
    accuracies are printed too: of the method with n samples, of majority voting, of a random sample, and
    pass@n. Each is the mean over all subsets of n samples (for voting, over 1,000 random subsets where there
    are more), with 95 % confidence intervals from 2,000 bootstrap resamples of the problems. They go to
    standard output when the selected records do not: with -o, and without it in every --format but table.

    Exit code 1: some records have errors, or a problem has no answer to vote for. No model is run.

    \b
    Examples:
      stepscore select rewards.jsonl -o chosen.jsonl
      stepscore select rewards.jsonl --method weighted --temperature 0.01 --n 1,4,16 --json | jq .accuracies
      stepscore select rewards.jsonl --series step --reducer min --format latex > accuracies.tex
      stepscore score PAIR samples.jsonl | stepscore select - --reducer min | jq '.selection // empty'
    """
    from stepscore.cli.accuracy_table import accuracy_table, as_json
    from stepscore.cli.comparing import shown
    from stepscore.cli.selection_remarks import remarks
    from stepscore.jobs.provenance import Command, HeaderLine
    from stepscore.jobs.scored_records import open_scored, read_all
    from stepscore.selection.answers import Comparer
    from stepscore.selection.best_of_n import (
        SelectionMethod,
        accuracies,
        group,
        judged,
        needs_answers,
        usual_sizes,
    )
    from stepscore.selection.sample_answers import examine

    if temperature is not None and method is Method.MAJORITY:
        raise click.UsageError("--temperature needs --method best-of-n or weighted")
    if output is not None and is_standard_output(output):
        output = "-"
    if output is not None and Path(output).suffix.lower() == ".parquet":
        raise click.BadParameter("select writes JSON Lines: name it .jsonl", param_hint="--output")
    _refuse_input(source, output)
    rule = SelectionMethod(method, series, reducer, temperature, seed)
    with open_scored(source) as file, Comparer(equality) as comparer:
        scored = read_all(file, source, series)
        failed = scored.failed
        warn_of_prompts(series, scored.records)
        derived = scored.provenance.derived_by(Command.SELECT)
        groups = group(scored.records)
        problems: list[Problem] = []
        with shown(comparer, problems, len(groups.samples), sys.stderr):
            field = examine(groups.samples, comparer.same) if needs_answers(groups, rule) else None
            problems.extend(judged(samples, rule, field, comparer.same) for samples in groups.samples)
        chosen, unanswered = _chosen(file, problems, rule)
        lines = [HeaderLine(derived).encode(), *chosen]
        table = list(accuracies(problems, rule, usual_sizes(problems) if sizes is None else sizes))
    undecided = comparer.undecided
    for_people = table_format is TableFormat.TABLE
    if output is not None and output != "-":
        from stepscore.fileio import write_atomically

        write_atomically(Path(output), lines)
    elif for_people or output == "-":
        sys.stdout.buffer.writelines(lines)
        sys.stdout.buffer.flush()
    stream = sys.stderr if output == "-" or (output is None and for_people) else sys.stdout
    if table and table_format is not TableFormat.JSON:
        print_table(stream, accuracy_table(derived, rule, table), table_format)
    for line in remarks(problems, groups, field, table, sizes, undecided=undecided, unanswered=unanswered):
        click.echo(line, err=True)
    name_failures(failed)
    if table_format is TableFormat.JSON:  # last, as it is the last line where it is on stderr
        text = as_json(derived, problems, rule, equality, table, errors=failed, undecided_pairs=undecided)
        click.echo(text, file=stream, nl=False)
    ctx.exit(1 if failed or unanswered else 0)


def _refuse_input(source: str, output: str | None) -> None:
    if (
        output not in (None, "-")
        and Path(output).exists()
        and source != "-"
        and Path(source).samefile(output)
    ):
        raise OutputExists("the output is the input file", hint="give another output")


def _chosen(file: BinaryIO, problems: Iterable[Problem], rule: SelectionMethod) -> tuple[list[bytes], int]:
    """Return the lines of the selected records, and the number of problems without one."""
    import msgspec

    from stepscore.jobs.schema import ErrorLine
    from stepscore.jobs.scored_records import line_with
    from stepscore.selection.best_of_n import select_sample, selection

    lines, unanswered = [], 0
    for problem in problems:
        try:
            at = select_sample(problem, rule)
        except InputError as error:
            unanswered += 1
            lines.append(msgspec.json.encode(ErrorLine.of(problem.ids[0], error)) + b"\n")
        else:
            why = selection(problem, at, rule)
            lines.append(line_with(file, problem.offsets[at], {"selection": why}))
    return lines, unanswered
