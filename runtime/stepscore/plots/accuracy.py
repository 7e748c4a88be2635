"""Accuracy against the number of samples, with the intervals of `select`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stepscore.plots.canvas import BASELINES, STYLES, LineStyle, legend_above, legend_text
from stepscore.plots.plot import SERIES, Kind, Origin
from stepscore.selection.best_of_n import Accuracy, MeanWithInterval, SelectionMethod
from stepscore.selection.expected_accuracy import LEVEL, RESAMPLES
from stepscore.tabular.table import Cell, Column, Fact, Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DODGE = 1.025
"""Factor by which points of one n are apart on its axis, so that no interval covers another."""
FIGURES = ("chosen", "majority", "random", "pass_at_n")
COLUMNS = (
    SERIES,
    Column.of("n"),
    Column.of("problems", "num_problems"),
    *(Column.of_interval(name, name) for name in FIGURES),
)
Curve = list[tuple[int, MeanWithInterval]]


@dataclass(frozen=True, slots=True)
class AccuracyPlot:
    """Accuracies of one selection method on one or more scored files."""

    rule: SelectionMethod
    curves: tuple[tuple[Origin, tuple[Accuracy, ...]], ...]

    kind = Kind.ACCURACY
    aspect = 0.8

    @property
    def title(self) -> str:
        """Return method and score."""
        return f"accuracy of {self.rule.method} by {self.rule.score_name}"

    def origins(self) -> Sequence[Origin]:
        """Return name and provenance of every file."""
        return [origin for origin, _ in self.curves]

    def tables(self) -> list[Table]:
        """Return fractions with their intervals, one row per n."""
        return [
            Table(
                self.title,
                COLUMNS,
                tuple(_row(origin, accuracy) for accuracy in accuracies),
                facts=(
                    Fact.of("method", "method", self.rule.method.value),
                    Fact.of("score", "score_name", self.rule.score_name),
                    Fact.of("temperature", "temperature", self.rule.temperature, ""),
                    *origin.facts(),
                ),
            )
            for origin, accuracies in self.curves
        ]

    def remarks(self) -> Iterable[str]:
        """Say what the intervals are, and which curves several files have no common one of."""
        yield (
            f"intervals: {LEVEL:.0%} confidence, {RESAMPLES:,} bootstrap resamples of the problems, seed "
            f"{self.rule.seed}"
        )
        for origin, accuracies in self.curves:
            counts = {accuracy.num_problems for accuracy in accuracies}
            if len(counts) > 1:
                yield (
                    f"{origin.name}: the number of problems falls from {max(counts):,} to {min(counts):,} "
                    "with n; problems with fewer samples are left out of that n"
                )
        if len(self.curves) > 1 and not self._have_same_samples():
            yield "majority, random and pass@n differ between the files and are not drawn"

    def draw(self, figure: Figure) -> None:
        """Draw one curve per file, and what it is compared with: majority, a random sample, pass@n."""
        axes = figure.subplots()
        lines = self._lines()
        for index, (name, curve, style) in enumerate(lines):
            _draw_curve(axes, name, curve, style, DODGE ** (index - (len(lines) - 1) / 2))
        sizes = sorted({n for _, curve, _ in lines for n, _ in curve})
        axes.set_xscale("log", base=2)
        axes.set_xticks(sizes, [f"{n:,}" for n in sizes])
        axes.minorticks_off()
        axes.set_xlabel("samples per problem, n")
        axes.set_ylabel("accuracy (%)")
        legend_above(figure, axes)

    def _lines(self) -> list[tuple[str, Curve, LineStyle]]:
        first = self.curves[0][1]
        alone = len(self.curves) == 1
        lines = [
            (self.rule.method.value if alone else origin.name, _curve(rows, "chosen"), style)
            for (origin, rows), style in zip(self.curves, STYLES, strict=False)
        ]
        if self._have_same_samples():
            shown = {"majority": "majority", "random": "random sample", "pass_at_n": "pass@n"}
            lines += [
                (text, _curve(first, name), style)
                for (name, text), style in zip(shown.items(), BASELINES, strict=True)
            ]
        return [line for line in lines if line[1]]

    def _have_same_samples(self) -> bool:
        """Return whether what does not depend on the rewards is equal in all files."""
        baselines = [
            [(row.n, row.num_problems, row.random, row.pass_at_n, row.majority) for row in rows]
            for _, rows in self.curves
        ]
        return all(baseline == baselines[0] for baseline in baselines)


def _curve(rows: Sequence[Accuracy], name: str) -> Curve:
    return [(row.n, value) for row in rows if (value := getattr(row, name)) is not None]


def _draw_curve(axes: Axes, name: str, curve: Curve, style: LineStyle, shift: float) -> None:
    """Draw the line at n itself, so that no curve seems to cross another, and the points beside n."""
    sizes, at = [n for n, _ in curve], [n * shift for n, _ in curve]
    means = [100 * value.mean for _, value in curve]
    low, high = [100 * value.low for _, value in curve], [100 * value.high for _, value in curve]
    axes.vlines(at, low, high, color=style.color, linewidth=0.6)
    for ends in (low, high):
        axes.plot(at, ends, linestyle="", marker="_", color=style.color, markersize=3, markeredgewidth=0.6)
    axes.plot(sizes, means, linestyle=style.dashes, color=style.color)
    axes.plot(at, means, linestyle="", **style.of_markers())
    axes.plot([], [], label=legend_text(name), **style.of_line())


def _row(origin: Origin, accuracy: Accuracy) -> tuple[Cell, ...]:
    found = (getattr(accuracy, name) for name in FIGURES)
    intervals = ((None, None, None) if one is None else (one.mean, one.low, one.high) for one in found)
    cells = (Cell("", values) for values in intervals)
    return (origin.cell, Cell.of(accuracy.n), Cell.of(accuracy.num_problems), *cells)
