"""Files of `stepscore plot`: scored ones in, a figure and its numbers out."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np

from stepscore.cli.comparing import shown
from stepscore.cli.group import name_failures, say
from stepscore.cli.json_mode import ASKED, print_result
from stepscore.cli.series import warn_of_prompts
from stepscore.enums import Equality, Series
from stepscore.errors import InputError, NotScored, OutputExists
from stepscore.evaluation.processbench import LabelledSolution, labelled
from stepscore.fileio import write_atomically
from stepscore.jobs.schema import ErrorLine
from stepscore.jobs.scored_records import Scored, read_all
from stepscore.plots.canvas import ImageFormat, render
from stepscore.plots.plot import Origin, Plot, data_as_json
from stepscore.selection.answers import Comparer
from stepscore.selection.best_of_n import Problem, SelectionMethod, group, judged
from stepscore.selection.sample_answers import examine
from stepscore.tabular.renderers import as_csv
from stepscore.visible import one_line

MOST_NAME_CHARS = 60


@dataclass(frozen=True, slots=True)
class Judgement:
    """A sample: its rewards, their reduction to one score, and whether its answer is right."""

    scores: np.ndarray  # float64 [n]
    score: float
    is_right: bool


@dataclass(frozen=True, slots=True)
class Source:
    """A scored file that is one series of a plot."""

    path: Path
    origin: Origin
    records: list[Scored]
    failed: list[ErrorLine]

    def labelled(self, *, needs_errors: bool = False) -> list[LabelledSolution]:
        """Return the solutions with a label; others become failures. Raises NotScored without any."""
        found = []
        for record in self.records:
            try:
                found.append(labelled(record, 0, self.path.name))
            except InputError as error:
                self.failed.append(ErrorLine.of(record.id, error))
        if not found:
            raise NotScored(
                f"{self.path}: no record has a usable `label`; first error: {self.failed[0].error.message}",
                hint="give scored records with a `label`, such as ProcessBench's",
            )
        if needs_errors and all(one.label < 0 for one in found):
            raise NotScored(
                f"{self.path}: no solution has a wrong step", hint="give records with a `label` of 0 or more"
            )
        return found

    def problems(self, rule: SelectionMethod, equality: Equality) -> list[Problem]:
        """Return the problems whose right samples are known. Raises NotScored without any."""
        return [problem for _, problem in self._judged(rule, equality)]

    def judgements(self, rule: SelectionMethod, equality: Equality) -> list[Judgement]:
        """Return the samples of these problems. Raises NotScored without any."""
        return [
            Judgement(sample.scores, float(score), bool(right))
            for samples, problem in self._judged(rule, equality)
            for sample, score, right in zip(samples, problem.scores, _known(problem), strict=True)
        ]

    def _judged(self, rule: SelectionMethod, equality: Equality) -> list[tuple[Sequence[Scored], Problem]]:
        groups = group(self.records).samples
        problems: list[Problem] = []
        with Comparer(equality) as comparer, shown(comparer, problems, len(groups), sys.stderr):
            field = examine(groups, comparer.same)
            problems.extend(judged(samples, rule, field, comparer.same) for samples in groups)
        found: list[tuple[Sequence[Scored], Problem]] = list(zip(groups, problems, strict=True))
        known = [pair for pair in found if pair[1].correct is not None]
        name = self.origin.name
        if not known:
            raise NotScored(
                f"{self.path}: no problem has a known answer",
                hint="give records with `final_answer_correct` or `final_answer`",
            )
        if len(known) < len(groups):
            say(f"{name}: {len(groups) - len(known):,} problems without a known answer are left out")
        if comparer.undecided:
            say(f"{name}: {comparer.undecided:,} pairs of answers could not be compared: they differ")
        return known


def _known(problem: Problem) -> np.ndarray:
    assert problem.correct is not None
    return problem.correct


def read_sources(paths: Sequence[Path], names: Sequence[str], series: Series, most: int) -> list[Source]:
    """Read scored files; raise UsageError for names that are not one each, or more than `most` files."""
    if len(paths) > most:
        raise click.UsageError(f"{len(paths)} files, but a figure of this kind takes at most {most}")
    if names and len(names) != len(paths):
        raise click.UsageError(f"{len(names)} names for {len(paths)} files: give --name once for each")
    given = names or [path.name.partition(".")[0] or path.name for path in paths]
    shown_names = [one_line(name, MOST_NAME_CHARS) for name in given]
    if len({*shown_names}) < len(paths):
        raise click.UsageError(f"files have one name ({', '.join(shown_names)}): tell them apart by --name")
    sources = []
    for path, name in zip(paths, shown_names, strict=True):
        with path.open("rb") as file:
            scored = read_all(file, str(path), series)
        warn_of_prompts(series, scored.records)
        sources.append(Source(path, Origin(name, scored.provenance), scored.records, scored.failed))
    return sources


def write_plot(plot: Plot, sources: Sequence[Source], outputs: Sequence[Path], width: float) -> int:
    """Write figure and numbers, print remarks and failures; return the exit code."""
    for output in outputs:
        if output.exists() and any(output.samefile(source.path) for source in sources):
            raise OutputExists(f"the output {output} is an input file", hint="give another output")
    contents = [_content(plot, output, width) for output in outputs]
    for output, content in zip(outputs, contents, strict=True):
        write_atomically(output, [content])
    for remark in plot.remarks():
        say(remark)
    failed = [line for source in sources for line in source.failed]
    name_failures(failed)
    ctx = click.get_current_context()
    if ctx.meta[ASKED]:
        from stepscore.cli.results import PlotResult

        print_result(
            PlotResult(kind=str(ctx.info_name), outputs=[str(each) for each in outputs], errors=len(failed))
        )
    return 1 if failed else 0


def _content(plot: Plot, output: Path, width: float) -> bytes:
    match output.suffix.lower():
        case ".csv":
            return as_csv(plot.tables()).encode()
        case ".json":
            return data_as_json(plot)
        case suffix:
            return render(plot, ImageFormat(suffix.removeprefix(".")), width)
