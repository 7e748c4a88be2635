"""The command `stepscore plot`: one command for each kind of plot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from stepscore.cli.load_options import positive
from stepscore.cli.plot_options import plot_options
from stepscore.cli.selection_options import (
    equality_option,
    method_option,
    reducer_option,
    seed_option,
    sizes_option,
)
from stepscore.cli.series import series_option
from stepscore.enums import Equality, Method, Reducer, Series


@click.group()
def plot() -> None:
    """Plot scored files for papers.

    SCORED.jsonl is an output of `stepscore score`; each file is a curve or a panel of its own, named after
    the file. The output's suffix decides: a figure (.pdf, .svg, .png) or its numbers (.csv, .json).

    Figures are readable without colour and hold text as text; equal inputs give equal files. Pair, version
    and date of the scoring are in their metadata. Figures need the extra [plots], numbers do not.
    """


@plot.command()
@plot_options
@method_option
@series_option(Series.CUMULATIVE, "Compute the score from")
@reducer_option
@click.option(
    "--temperature",
    type=float,
    callback=positive,
    help="Temperature of the sigmoid that weights the votes of --method weighted.  [default: 1]",
)
@sizes_option
@equality_option
@seed_option
@click.pass_context
def accuracy(
    ctx: click.Context,
    /,
    *,
    sources: tuple[Path, ...],
    outputs: tuple[Path, ...],
    width: float,
    names: tuple[str, ...],
    method: Method,
    series: Series,
    reducer: Reducer,
    temperature: float | None,
    sizes: list[int] | None,
    equality: Equality,
    seed: int,
) -> None:
    """Plot the accuracy of a selection against the number of samples.

    The figures and their intervals are those of `stepscore select`. One file is compared with majority
    voting, a random sample and pass@n; several files with one another.

    \b
    Example:
      stepscore plot accuracy rewards.jsonl -o accuracy.pdf -o accuracy.csv
    """
    from stepscore.cli.plot_files import read_sources, write_plot
    from stepscore.plots.accuracy import AccuracyPlot
    from stepscore.plots.plot import MOST_SERIES
    from stepscore.selection.best_of_n import SelectionMethod, accuracies, usual_sizes

    if temperature is not None and method is not Method.WEIGHTED:
        raise click.UsageError("--temperature needs --method weighted")
    rule = SelectionMethod(method, series, reducer, temperature, seed)
    files = read_sources(sources, names, series, MOST_SERIES)
    curves = []
    for file in files:
        problems = file.problems(rule, equality)
        found = tuple(accuracies(problems, rule, usual_sizes(problems) if sizes is None else sizes))
        if not found:
            most = max(len(problem.ids) for problem in problems)
            raise click.UsageError(f"{file.path}: no problem has more than {most} samples; lower --n")
        curves.append((file.origin, found))
    ctx.exit(write_plot(AccuracyPlot(rule, tuple(curves)), files, outputs, width))


@plot.command()
@plot_options
@series_option(Series.STEP, "Plot")
@click.option(
    "--by",
    "axis",
    type=click.Choice(["step", "share"]),
    default="step",
    show_default=True,
    help="Position of a step: its number, or the share of the solution.",
)
@click.option("--bins", type=click.IntRange(2, 100), default=5, show_default=True, help="Bins of --by share.")
@equality_option
@click.pass_context
def position(
    ctx: click.Context,
    /,
    *,
    sources: tuple[Path, ...],
    outputs: tuple[Path, ...],
    width: float,
    names: tuple[str, ...],
    series: Series,
    axis: Any,
    bins: int,
    equality: Equality,
) -> None:
    """Plot rewards against the position of the step, for right and wrong solutions.

    Lines are medians, bands quartiles. A solution is right if its "label" is -1; in files without labels, if
    its final answer is correct.

    \b
    Example:
      stepscore plot position rewards.jsonl --series cumulative -o position.pdf
    """
    from stepscore.cli.plot_files import read_sources, write_plot
    from stepscore.plots.plot import MOST_SERIES
    from stepscore.plots.position import Axis, JudgedSolution, PositionPlot, Truth
    from stepscore.selection.best_of_n import SelectionMethod

    files = read_sources(sources, names, series, MOST_SERIES)
    panels = []
    for file in files:
        if any(record.label is not None for record in file.records):
            truth = Truth.LABEL
            found = [JudgedSolution(one.scores, one.label < 0) for one in file.labelled()]
        else:
            truth = Truth.ANSWER
            judgements = file.judgements(SelectionMethod(), equality)
            found = [JudgedSolution(one.scores, one.is_right) for one in judgements]
        panels.append((file.origin, truth, tuple(found)))
    ctx.exit(write_plot(PositionPlot(series, Axis(axis), bins, tuple(panels)), files, outputs, width))


@plot.command()
@plot_options
@series_option(Series.STEP, "Compare with the thresholds")
@click.pass_context
def first_error(
    ctx: click.Context,
    /,
    *,
    sources: tuple[Path, ...],
    outputs: tuple[Path, ...],
    width: float,
    names: tuple[str, ...],
    series: Series,
) -> None:
    """Plot precision and recall of the first wrong step over thresholds.

    Each record needs a "label": the 0-based index of its first wrong step, or -1. A solution is marked where
    a step is below the threshold; its first wrong step is found where the first marked step is that one.

    \b
    Example:
      stepscore plot first-error problems.scored.jsonl -o first-error.pdf
    """
    from stepscore.cli.plot_files import read_sources, write_plot
    from stepscore.plots.first_error import MOST_FILES, FirstErrorPlot, detections, thresholds_of

    files = read_sources(sources, names, series, MOST_FILES)
    curves = []
    for file in files:
        found = file.labelled(needs_errors=True)
        scores, labels = [one.scores for one in found], [one.label for one in found]
        curves.append((file.origin, tuple(detections(scores, labels, thresholds_of(scores)))))
    ctx.exit(write_plot(FirstErrorPlot(series, tuple(curves)), files, outputs, width))


@plot.command()
@plot_options
@series_option(Series.STEP, "Plot")
@click.pass_context
def step_rewards(
    ctx: click.Context,
    /,
    *,
    sources: tuple[Path, ...],
    outputs: tuple[Path, ...],
    width: float,
    names: tuple[str, ...],
    series: Series,
) -> None:
    """Plot the distribution of step rewards by label.

    Each record needs a "label": the 0-based index of its first wrong step, or -1. Steps before it are
    correct; labels say nothing of the steps after it, which are a group of their own.

    \b
    Example:
      stepscore plot step-rewards problems.scored.jsonl -o step-rewards.pdf
    """
    from stepscore.cli.plot_files import read_sources, write_plot
    from stepscore.plots.plot import MOST_SERIES
    from stepscore.plots.step_rewards import StepRewardPlot, rewards_by_label

    files = read_sources(sources, names, series, MOST_SERIES)
    panels = []
    for file in files:
        found = file.labelled()
        groups = rewards_by_label([one.scores for one in found], [one.label for one in found])
        panels.append((file.origin, groups))
    ctx.exit(write_plot(StepRewardPlot(series, tuple(panels)), files, outputs, width))


@plot.command()
@plot_options
@series_option(Series.CUMULATIVE, "Compute the score from")
@reducer_option
@click.option(
    "--temperature",
    type=float,
    default=1.0,
    show_default=True,
    callback=positive,
    help="Temperature of the sigmoid, in units of the reward.",
)
@click.option("--bins", type=click.IntRange(2, 100), default=10, show_default=True, help="Bins of [0, 1].")
@equality_option
@click.pass_context
def calibration(
    ctx: click.Context,
    /,
    *,
    sources: tuple[Path, ...],
    outputs: tuple[Path, ...],
    width: float,
    names: tuple[str, ...],
    series: Series,
    reducer: Reducer,
    temperature: float,
    bins: int,
    equality: Equality,
) -> None:
    """Plot the calibration of sigmoid(reward / temperature): a reliability diagram.

    The probability of a solution is compared with the share of right final answers, in equal bins, with the
    number of solutions per bin below. The error measure is the expected calibration error (ECE).

    \b
    Example:
      stepscore plot calibration rewards.jsonl --temperature 0.001 -o calibration.pdf
    """
    import numpy as np

    from stepscore.cli.plot_files import read_sources, write_plot
    from stepscore.plots.calibration import CalibrationPlot, reliability
    from stepscore.plots.plot import MOST_SERIES
    from stepscore.rewards import probability
    from stepscore.selection.best_of_n import SelectionMethod

    rule = SelectionMethod(series=series, reducer=reducer)
    files = read_sources(sources, names, series, MOST_SERIES)
    curves = []
    for file in files:
        judgements = file.judgements(rule, equality)
        probabilities = probability([one.score for one in judgements], temperature)
        right = np.array([one.is_right for one in judgements])
        curves.append((file.origin, tuple(reliability(probabilities, right, bins))))
    ctx.exit(write_plot(CalibrationPlot(rule.score_name, temperature, tuple(curves)), files, outputs, width))
