"""The command `stepscore evaluate processbench`."""

from __future__ import annotations

import contextlib
import math
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import click
from click.core import ParameterSource

from stepscore.cli.group import INTERRUPTED, name_failures
from stepscore.cli.load_options import Words, load_options
from stepscore.cli.score import finite, load_scorer, run_job, unbuffered_input
from stepscore.enums import Series
from stepscore.errors import InputError, NotComparable, OutputExists, OutputUnwritable

if TYPE_CHECKING:
    from stepscore.evaluation.processbench import LabelledSolution, Threshold
    from stepscore.jobs.scored_records import Failed

THRESHOLD_SUBSET = "gsm8k"
SCORED_SUFFIX = ".scored.jsonl"


@click.group()
def evaluate() -> None:
    """Judge rewards against labels."""


@evaluate.command()
@click.argument(
    "sources",
    metavar="FILES...",
    nargs=-1,
    required=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
)
@click.option(
    "--pair",
    type=click.Path(path_type=Path),
    help="Score FILES with this pair first; then the options of `stepscore score` below count too.",
)
@click.option(
    "-o",
    "--output",
    metavar="DIR",
    type=click.Path(file_okay=False, path_type=Path),
    help="Write SUBSET_error.jsonl and SUBSET_correct.jsonl here; with --pair what was scored too.",
)
@click.option(
    "--series",
    type=Words(Series, case_sensitive=False),
    default="step",
    show_default=True,
    help="Which rewards are compared with the threshold.",
)
@click.option(
    "--threshold-from",
    metavar="SUBSET",
    help=f"Choose the threshold on this subset, keep it for all.  [default: {THRESHOLD_SUBSET}]",
)
@click.option("--threshold", metavar="NATS", type=float, callback=finite, help="Take this threshold.")
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
@click.option("--quiet", is_flag=True, help="No progress while scoring.")
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
    as_json: bool,
    quiet: bool,
    **load: Any,
) -> None:
    """Find the first wrong step, as ProcessBench counts it, in FILES that `stepscore score` wrote.

    A record has a "label": the 0-based index of its first wrong step, or -1. The step predicted is the first
    one whose reward is below the threshold. F1 is the harmonic mean of the accuracies on erroneous and on
    correct samples, the average over subsets is unweighted. The subset of a record is what its id begins with
    (gsm8k of gsm8k-17), or the name of its file.

    The threshold is the best one for one subset, found exactly, or --threshold, in nats: reward / beta. Beta
    is read from what `score` left beside its output; give --beta where that is gone. The "upper bound" takes
    the best threshold for every subset from its own labels: no result, but no threshold does better.

    With --pair, FILES are scored first; with -o as well, into DIR/NAME.scored.jsonl, which a second run reads
    and continues. Records with errors are left out of the figures and counted; the exit code is then 1.

    \b
    Examples:
      stepscore evaluate processbench gsm8k.scored.jsonl math.scored.jsonl -o judged
      stepscore evaluate processbench --pair PAIR gsm8k.jsonl math.jsonl -o judged --convention response
      stepscore evaluate processbench mine.scored.jsonl --threshold -2.5 --json | jq .average_f1
    """
    from stepscore.evaluation.processbench import Threshold, best_threshold, evaluate_processbench

    if threshold is not None and threshold_from is not None:
        raise click.UsageError("give --threshold or --threshold-from, not both")
    if pair is None:
        _refuse_scoring_options(ctx, load)
    with contextlib.ExitStack() as stack:
        if pair is not None:
            folder = output or Path(stack.enter_context(tempfile.TemporaryDirectory()))
            sources = _scored(ctx, pair, sources, folder, load, quiet=quiet)
        beta = _beta(sources, load["beta"])
        files = [stack.enter_context(path.open("rb")) for path in sources]
        samples, failed = _samples(files, sources, series)
        if threshold is None:
            limit = best_threshold(samples, threshold_from or THRESHOLD_SUBSET, beta)
        elif beta is None:
            raise click.UsageError(
                "--threshold is in nats: give --beta, no .fingerprint.json stands beside FILES"
            )
        else:
            limit = Threshold(threshold * beta, threshold, None)
        verdict = evaluate_processbench(samples, limit, series=series, beta=beta, errors=failed)
        if output is not None:
            _write(output, files, samples, limit)
    if as_json:
        import msgspec

        click.echo(msgspec.json.format(msgspec.json.encode(verdict), indent=2))
    else:
        from stepscore.cli.processbench_table import print_verdict

        print_verdict(sys.stdout, verdict)
    name_failures(failed)
    ctx.exit(1 if failed else 0)


def _refuse_scoring_options(ctx: click.Context, load: dict[str, Any]) -> None:
    for name in load:
        if name != "beta" and ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            raise click.UsageError(f"--{name.replace('_', '-')} belongs to --pair: FILES are scored already")


def _scored(
    ctx: click.Context,
    pair: Path,
    sources: Sequence[Path],
    folder: Path,
    load: dict[str, Any],
    *,
    quiet: bool,
) -> tuple[Path, ...]:
    """Score every file into the folder, or go on where an earlier run stopped; return where."""
    targets = tuple(folder / (path.name.partition(".")[0] + SCORED_SUFFIX) for path in sources)
    if len(set(targets)) < len(targets):
        raise click.UsageError("two FILES have the same name up to the first dot: rename one")
    _make(folder)
    with load_scorer(pair, load | {"tokens": False}) as scorer:
        for source, target in zip(sources, targets, strict=True):
            with unbuffered_input(str(source)) as lines:
                if run_job(scorer, lines, str(target), None, quiet=quiet, tokens=False) == INTERRUPTED:
                    ctx.exit(INTERRUPTED)
    return targets


def _beta(sources: Sequence[Path], given: float | None) -> float | None:
    """The beta of the run that scored the files; raises NotComparable where they are of several runs."""
    from stepscore.jobs.resume import read_fingerprint

    runs = []
    for path in sources:
        with contextlib.suppress(OutputExists):  # what was piped or moved has no fingerprint beside it
            runs.append((path, read_fingerprint(path)))
    for path, run in runs[1:]:
        for name in ("pair", "convention", "beta"):
            if run.get(name) != runs[0][1].get(name):
                raise NotComparable(
                    f"{runs[0][0]} and {path} were scored with another {name}: "
                    f"{runs[0][1].get(name)} and {run.get(name)}",
                    hint="one threshold means different things in them: score them alike",
                )
    beta = float(runs[0][1].get("beta", "nan")) if runs else math.nan
    if given is not None and math.isfinite(beta) and given != beta:
        raise click.UsageError(f"--beta is {given:g}, but {runs[0][0]} was scored with {beta:g}")
    return given if given is not None else (beta if math.isfinite(beta) else None)


def _samples(
    files: Sequence[BinaryIO], sources: Sequence[Path], series: Series
) -> tuple[list[LabelledSolution], list[Failed]]:
    from stepscore.evaluation.processbench import labelled
    from stepscore.jobs.scored_records import Failed, read_all

    samples, failed = [], []
    for index, (file, path) in enumerate(zip(files, sources, strict=True)):
        records, bad = read_all(file)
        failed += bad
        for record in records:
            try:
                samples.append(labelled(record, index, path.name, series))
            except InputError as error:
                failed.append(Failed(record.id, error.code, error.message))
    return samples, failed


def _write(
    folder: Path, files: Sequence[BinaryIO], samples: Sequence[LabelledSolution], threshold: Threshold
) -> None:
    """Write the two files a subset, named and filled as ProcessBench's own script does."""
    from stepscore.evaluation.first_error import first_error
    from stepscore.fileio import write_atomically
    from stepscore.jobs.scored_records import line_with

    _make(folder)
    lines: dict[str, list[bytes]] = {}
    for sample in samples:
        for kind in ("error", "correct"):
            lines.setdefault(f"{sample.subset}_{kind}.jsonl", [])
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
        raise OutputUnwritable(f"{folder} cannot be made: {error.strerror}") from None
