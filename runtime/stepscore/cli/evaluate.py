"""The command `stepscore evaluate processbench`."""

from __future__ import annotations

import contextlib
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import click
from click.core import ParameterSource

from stepscore.cli.formats import TableFormat, format_option, print_table
from stepscore.cli.group import name_failures
from stepscore.cli.load_options import (
    load_options,
    output_folder_option,
    overwrite_option,
    quiet_option,
    reading_options,
)
from stepscore.cli.run_job import load_scorer, run_job
from stepscore.cli.series import series_option, warn_of_prompts
from stepscore.cli.streams import print_data
from stepscore.cli.thresholds import threshold_as_reward, threshold_options, warn_outside
from stepscore.enums import Series
from stepscore.errors import InputError, NotScored, OutputUnwritable

if TYPE_CHECKING:
    from stepscore.evaluation.processbench import LabelledSolution, Threshold
    from stepscore.jobs.job import JobOptions
    from stepscore.jobs.provenance import Provenance
    from stepscore.jobs.schema import ErrorLine
    from stepscore.jobs.scored_records import ScoredFile
    from stepscore.scorer import Scorer

THRESHOLD_SUBSET = "gsm8k"
SCORED_SUFFIX = ".scored.jsonl"


@click.group()
def evaluate() -> None:
    """Evaluate rewards on labelled benchmarks."""


@evaluate.command()
@click.argument(
    "sources",
    metavar="FILES...",
    nargs=-1,
    required=True,
    type=click.Path(exists=True, path_type=Path),
)
@click.option(
    "--pair",
    type=click.Path(path_type=Path),
    help="Score FILES with this pair first, with the options of `stepscore score` below.",
)
@output_folder_option(
    "Write SUBSET_error.jsonl and SUBSET_correct.jsonl to this folder; with --pair, the scored files too."
)
@series_option(Series.STEP, "Compare with the threshold")
@click.option(
    "--threshold-from",
    metavar="SUBSET",
    help=f"Choose the threshold on this subset and use it for all.  [default: {THRESHOLD_SUBSET}]",
)
@threshold_options("Count as wrong", None)
@format_option
@quiet_option
@overwrite_option
@reading_options
@load_options
@click.pass_context
def processbench(
    ctx: click.Context,
    /,
    *,
    sources: tuple[Path, ...],
    pair: Path | None,
    output: Path | None,
    series: Series,
    threshold_from: str | None,
    threshold: float | None,
    threshold_nats: float | None,
    table_format: TableFormat,
    quiet: bool,
    overwrite: bool,
    problem_field: str | None,
    steps_field: str | None,
    split: bool,
    **load: Any,
) -> None:
    """Compute ProcessBench's F1 of first wrong steps.

    FILES are outputs of `stepscore score`. Each record needs a "label": the 0-based index of its first wrong
    step, or -1. The predicted step is the first one whose reward is below the threshold. F1 is the harmonic
    mean of the accuracies on erroneous and on correct samples; the average over subsets is unweighted. The
    subset of a record is the prefix of its id (gsm8k of gsm8k-17), else the name of its file.

    The threshold is the best one on one subset, found exactly, or --threshold, a reward, or --threshold-nats:
    reward / beta. Beta is read from the header of each file; give --beta where that is missing. A threshold
    outside of what the rewards span is warned of. The "upper bound" uses an oracle threshold, chosen for each
    subset on its own labels: not a reportable result.

    With --pair, FILES are scored first; with -o, into DIR/NAME.scored.jsonl, which a second run resumes.
    Records with errors are skipped; their number and ids are printed, and the exit code is 1.

    \b
    Examples:
      stepscore evaluate processbench gsm8k.scored.jsonl math.scored.jsonl -o judged
      stepscore evaluate processbench --pair PAIR gsm8k.jsonl math.jsonl -o judged --convention response
      stepscore evaluate processbench mine.scored.jsonl --threshold-nats -0.6 --json | jq .average_f1
    """
    from stepscore.evaluation.processbench import Threshold, best_threshold, evaluate_processbench
    from stepscore.jobs.job import JobOptions
    from stepscore.jobs.provenance import Command, document
    from stepscore.jobs.scored_records import open_scored, origin_of_all, read_all
    from stepscore.records import Reading

    if (threshold is not None or threshold_nats is not None) and threshold_from is not None:
        raise click.UsageError("give a threshold or --threshold-from, not both")
    if pair is None:
        _refuse_scoring_options(ctx, [*load, "overwrite", "problem_field", "steps_field", "split"])
    with contextlib.ExitStack() as stack:
        if pair is not None:
            folder = output or Path(stack.enter_context(tempfile.TemporaryDirectory()))
            options = JobOptions(reading=Reading(problem_field, steps_field, split), overwrite=overwrite)
            targets = _targets(sources, folder)
            with load_scorer(pair, load | {"tokens": False}) as scorer:
                for job in zip(sources, targets, strict=True):
                    _score(scorer, job, options, quiet=quiet)
            sources = targets
        files = [stack.enter_context(open_scored(path)) for path in sources]
        names = [str(path) for path in sources]
        scored = [read_all(file, name, series) for file, name in zip(files, names, strict=True)]
        origin = origin_of_all(zip(names, scored, strict=True))
        beta = _beta(origin, load["beta"])
        samples, failed = _samples(scored, sources, series)
        given = threshold_as_reward(threshold, threshold_nats, beta)
        if given is None:
            limit = best_threshold(samples, threshold_from or THRESHOLD_SUBSET, beta)
        else:
            limit = Threshold.of(given, beta, chosen_on=None)
        warn_outside(limit.reward, [sample.scores for sample in samples])
        derived = origin.derived_by(Command.EVALUATE)
        verdict = evaluate_processbench(samples, limit, series=series, beta=beta, errors=failed)
        if output is not None:
            _write(output, files, samples, limit, derived)
    if table_format is TableFormat.JSON:
        print_data(document(verdict, derived))
    else:
        from stepscore.cli.processbench_table import processbench_table

        print_table(sys.stdout, processbench_table(verdict, derived), table_format)
    name_failures(failed)
    ctx.exit(1 if failed else 0)


def _refuse_scoring_options(ctx: click.Context, names: Iterable[str]) -> None:
    for name in names:
        if name != "beta" and ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            raise click.UsageError(f"--{name.replace('_', '-')} needs --pair: FILES are already scored")


def _targets(sources: Sequence[Path], folder: Path) -> tuple[Path, ...]:
    """Return the paths of the scored files, in a folder that is made."""
    targets = tuple(folder / (path.name.partition(".")[0] + SCORED_SUFFIX) for path in sources)
    if len(set(targets)) < len(targets):
        raise click.UsageError("two FILES have the same name up to the first dot: rename one of them")
    _make(folder)
    return targets


def _score(scorer: Scorer, job: tuple[Path, Path], options: JobOptions, *, quiet: bool) -> None:
    """Score a file into another, or resume an earlier run."""
    source, target = job
    from stepscore.jobs.inputs.opening import open_input

    with open_input(source) as lines:
        run_job(scorer, lines, str(target), options, quiet=quiet, summary=not quiet)


def _beta(origin: Provenance, given: float | None) -> float | None:
    """Return the beta that the files were scored with, where it is known, else the given one."""
    if given is not None and origin.beta is not None and given != origin.beta:
        raise click.UsageError(f"--beta is {given:g}, but the files were scored with {origin.beta:g}")
    return given if origin.beta is None else origin.beta


def _samples(
    scored: Sequence[ScoredFile], sources: Sequence[Path], series: Series
) -> tuple[list[LabelledSolution], list[ErrorLine]]:
    from stepscore.evaluation.processbench import labelled
    from stepscore.jobs.schema import ErrorLine

    samples, failed = [], []
    for index, (file, path) in enumerate(zip(scored, sources, strict=True)):
        warn_of_prompts(series, file.records)
        failed += file.failed
        for record in file.records:
            try:
                samples.append(labelled(record, index, path.name))
            except InputError as error:
                failed.append(ErrorLine.of(record.id, error))
    if not samples:
        raise NotScored(
            f"no record can be evaluated; first error of {len(failed):,}: {failed[0].error.message}",
            hint="give scored records with a `label`",
        )
    return samples, failed


def _write(
    folder: Path,
    files: Sequence[BinaryIO],
    samples: Sequence[LabelledSolution],
    threshold: Threshold,
    derived: Provenance,
) -> None:
    """Write two files per subset, in the names and fields of ProcessBench's own script, behind headers."""
    from stepscore.evaluation.first_error import first_error
    from stepscore.fileio import write_atomically
    from stepscore.jobs.provenance import HeaderLine
    from stepscore.jobs.scored_records import line_with

    _make(folder)
    header = HeaderLine(derived).encode()
    lines: dict[str, list[bytes]] = {}
    for sample in samples:
        for kind in ("error", "correct"):
            lines.setdefault(f"{sample.subset}_{kind}.jsonl", [header])
        prediction = first_error(sample.scores, threshold.reward)
        name = f"{sample.subset}_{'correct' if sample.label == -1 else 'error'}.jsonl"
        added = {"prediction": prediction, "match": prediction == sample.label}
        lines[name].append(line_with(files[sample.file], sample.offset, added))
    for name, text in lines.items():
        write_atomically(folder / name, text)


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputUnwritable(f"cannot create {folder}: {error.strerror}") from None
