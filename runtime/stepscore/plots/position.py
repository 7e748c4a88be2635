"""Rewards against the position of the step, for right and wrong solutions: medians and quartiles."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import numpy as np

from stepscore.enums import Series
from stepscore.plots.canvas import BAND, STYLES, legend_above, legend_text
from stepscore.plots.plot import SERIES, Kind, Origin
from stepscore.rewards import Scores
from stepscore.tabular.table import Cell, Column, Fact, Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FEWEST = 5
"""Steps at a position below which no median is drawn."""
SHARE_BINS = 5
COLUMNS = (
    SERIES,
    Column.of("solutions", is_text=True),
    Column.of("position"),
    *(Column.of(name) for name in ("lower_quartile", "median", "upper_quartile")),
    Column.of("num_steps"),
)
FILLS: tuple[dict[str, Any], ...] = (
    {"color": BAND},
    {"facecolor": "none", "edgecolor": "#7a9cc6", "hatch": "//////"},
)


class Axis(StrEnum):
    """What the position of a step is."""

    STEP = "step"
    """Its number, from 1."""
    SHARE = "share"
    """Its number over the number of steps of its solution."""


class Truth(StrEnum):
    """What makes a solution right."""

    LABEL = "label"
    """It has no wrong step (`label` is -1)."""
    ANSWER = "answer"
    """Its final answer is correct."""

    def of(self, right: bool) -> str:
        """Return the name of the right or the wrong solutions."""
        names = ("no wrong step", "a wrong step") if self is Truth.LABEL else ("right answer", "wrong answer")
        return names[0 if right else 1]


@dataclass(frozen=True, slots=True)
class JudgedSolution:
    """Rewards of a solution, and whether it is right."""

    scores: np.ndarray  # float64 [n]
    is_right: bool


@dataclass(frozen=True, slots=True)
class Quartiles:
    """Rewards at one position; `position` is a step's number, or the middle of a bin of shares."""

    position: float
    low: float
    median: float
    high: float
    num_steps: int


def quartiles(solutions: Iterable[Scores], axis: Axis, bins: int = SHARE_BINS) -> list[Quartiles]:
    """Return the quartiles of the rewards of steps at each position, linearly interpolated.

    With step k of n, counted from 1: by Axis.STEP its position is k; by Axis.SHARE it belongs to the bin
    ((b - 1) / bins, b / bins] that holds k / n, whose middle is the position. All steps of a bin count, so a
    long solution counts more often than a short one. Positions without steps are left out.

    solutions: float [n] each, n >= 1, any unit.

    >>> [(each.position, each.median) for each in quartiles([[1.0, 3.0], [2.0]], Axis.STEP)]
    [(1, 1.5), (2, 3.0)]
    >>> [(each.position, each.median) for each in quartiles([[1.0, 3.0], [2.0]], Axis.SHARE, bins=2)]
    [(0.25, 1.0), (0.75, 2.5)]
    """
    values: dict[float, list[float]] = {}
    for scores in solutions:
        for index, score in enumerate(scores):
            position: float = index + 1
            if axis is Axis.SHARE:
                position = (-(-(index + 1) * bins // len(scores)) - 0.5) / bins
            values.setdefault(position, []).append(float(score))
    found = []
    for position, rewards in sorted(values.items()):
        low, median, high = map(float, np.percentile(rewards, (25, 50, 75)))
        found.append(Quartiles(position, low, median, high, len(rewards)))
    return found


@dataclass(frozen=True, slots=True)
class PositionPlot:
    """Rewards along the solutions of one or more scored files, a panel for each."""

    series: Series
    axis: Axis
    bins: int
    panels: tuple[tuple[Origin, Truth, tuple[JudgedSolution, ...]], ...]

    kind = Kind.POSITION

    @property
    def title(self) -> str:
        """Return the reading and the axis."""
        return f"{self.series} rewards by {'number of the step' if self.axis is Axis.STEP else 'share'}"

    @property
    def aspect(self) -> float:
        """Return the height over the width: panels stand below one another."""
        return 0.25 + 0.5 * len(self.panels)

    def origins(self) -> Sequence[Origin]:
        """Return name and provenance of every file."""
        return [origin for origin, _, _ in self.panels]

    def tables(self) -> list[Table]:
        """Return quartiles, a row for each position of right and wrong solutions."""
        tables = []
        for origin, truth, solutions in self.panels:
            rows = tuple(
                (
                    origin.cell,
                    Cell.of(truth.of(right)),
                    *map(Cell.of, (one.position, one.low, one.median, one.high, one.num_steps)),
                )
                for right, found in self._curves(solutions).items()
                for one in found
            )
            facts = (Fact.of("rewards", "rewards", self.series.value), *origin.facts())
            tables.append(Table(self.title, COLUMNS, rows, facts=facts))
        return tables

    def remarks(self) -> Iterable[str]:
        """Say how many solutions there are, and which positions are not drawn."""
        yield "lines: medians; bands: quartiles"
        for origin, truth, solutions in self.panels:
            counts = {right: sum(one.is_right is right for one in solutions) for right in (True, False)}
            yield f"{origin.name}: " + ", ".join(f"{truth.of(right)} {n:,}" for right, n in counts.items())
            hidden = sum(
                one.num_steps < FEWEST for found in self._curves(solutions).values() for one in found
            )
            if hidden:
                yield f"{origin.name}: {hidden} positions with fewer than {FEWEST} steps are not drawn"

    def draw(self, figure: Figure) -> None:
        """Draw a panel for each file."""
        panels = figure.subplots(len(self.panels), 1, sharex=True, squeeze=False)[:, 0]
        for axes, (origin, truth, solutions) in zip(panels, self.panels, strict=True):
            self._draw_panel(axes, truth, solutions)
            if len(self.panels) > 1:
                axes.set_title(legend_text(origin.name), fontsize=7, loc="left")
        what = "step" if self.axis is Axis.STEP else "share of the solution"
        panels[-1].set_xlabel(what)
        if self.axis is Axis.STEP:
            panels[-1].xaxis.get_major_locator().set_params(integer=True)
        legend_above(figure, panels[0])

    def _draw_panel(self, axes: Axes, truth: Truth, solutions: Sequence[JudgedSolution]) -> None:
        axes.axhline(0, color="#595959", linewidth=0.5)
        for right, found in self._curves(solutions).items():
            shown = [one for one in found if one.num_steps >= FEWEST]
            at = [one.position for one in shown]
            fill, style = FILLS[0 if right else 1], STYLES[0 if right else 1]
            bounds = [one.low for one in shown], [one.high for one in shown]
            axes.fill_between(at, *bounds, linewidth=0, zorder=1, **fill)
            axes.plot(at, [one.median for one in shown], label=truth.of(right), **style.of_line())
        axes.set_ylabel(f"{self.series} reward")

    def _curves(self, solutions: Sequence[JudgedSolution]) -> Mapping[bool, list[Quartiles]]:
        def of(right: bool) -> Iterator[np.ndarray]:
            return (one.scores for one in solutions if one.is_right is right)

        return {right: quartiles(of(right), self.axis, self.bins) for right in (True, False)}
