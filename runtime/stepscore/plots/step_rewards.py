"""Distribution of the rewards of steps by label: before the first wrong step, that step, and after it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from stepscore.enums import Series
from stepscore.evaluation.first_error import Labels
from stepscore.plots.canvas import BAND, STYLES, legend_above, legend_text
from stepscore.plots.plot import SERIES, Kind, Origin
from stepscore.rewards import Scores
from stepscore.tabular.table import Cell, Column, Fact, Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CORRECT, WRONG, AFTER = "correct", "first wrong", "after it"
GROUPS = (CORRECT, WRONG, AFTER)
TAIL = 0.5
"""Percent of the rewards at either end that the axis leaves out."""
BINS = 40
MARKED_BINS = 6
"""Bins from one marker to the next."""
COLUMNS = (
    SERIES,
    Column.of("steps", is_text=True),
    *map(Column.of, ("bin_from", "bin_to", "num_steps", "share")),
)


def rewards_by_label(scores_per_sample: Sequence[Scores], labels: Labels) -> dict[str, np.ndarray]:
    """Return the rewards of steps that are correct, first wrong, and after a first wrong step.

    Of a solution with label l: scores[:l], scores[l], scores[l + 1:]; all are correct where l is -1. Labels
    say nothing of the steps after the first wrong one.

    >>> {name: found.tolist() for name, found in rewards_by_label([[0.1, -0.2, 0.3], [0.4]], [1, -1]).items()}
    {'correct': [0.1, 0.4], 'first wrong': [-0.2], 'after it': [0.3]}
    """
    found: dict[str, list[np.ndarray]] = {group: [np.empty(0)] for group in GROUPS}
    for scores, label in zip(scores_per_sample, labels, strict=True):
        values = np.asarray(scores, np.float64)
        end = values.size if label < 0 else label
        found[CORRECT].append(values[:end])
        found[WRONG].append(values[end : end + 1])
        found[AFTER].append(values[end + 1 :])
    return {group: np.concatenate(parts) for group, parts in found.items()}


def bin_edges(values: np.ndarray, bins: int = BINS) -> np.ndarray:
    """Return the edges of equal bins from the 0.5th to the 99.5th percentile of all rewards.

    >>> bin_edges(np.arange(1001.0), 2).tolist()
    [5.0, 500.0, 995.0]
    """
    low, high = np.percentile(values, (TAIL, 100 - TAIL))
    if low == high:
        low, high = np.nextafter(low, -np.inf), np.nextafter(high, np.inf)
    return np.linspace(low, high, bins + 1)


@dataclass(frozen=True, slots=True)
class StepRewardPlot:
    """Rewards of steps by label, of one or more scored files, a panel for each."""

    series: Series
    panels: tuple[tuple[Origin, Mapping[str, np.ndarray]], ...]

    kind = Kind.STEP_REWARDS

    @property
    def title(self) -> str:
        """Return the reading."""
        return f"{self.series} rewards by label"

    @property
    def aspect(self) -> float:
        """Return the height over the width: panels stand below one another."""
        return 0.2 + 0.55 * len(self.panels)

    def origins(self) -> Sequence[Origin]:
        """Return name and provenance of every file."""
        return [origin for origin, _ in self.panels]

    def tables(self) -> list[Table]:
        """Return counts and shares of each group, a row for each bin; outermost bins are open."""
        tables = []
        for origin, groups in self.panels:
            edges = bin_edges(np.concatenate(list(groups.values())))
            ends = [None, *map(float, edges), None]
            rows = []
            for name, values in groups.items():
                counts = _counts(values, edges)
                for low, high, count in zip(ends[:-1], ends[1:], counts, strict=True):
                    share = count / values.size if values.size else None
                    rows.append((origin.cell, Cell.of(name), *map(Cell.of, (low, high, count, share))))
            facts = (Fact.of("rewards", "rewards", self.series.value), *origin.facts())
            tables.append(Table(self.title, COLUMNS, tuple(rows), facts=facts))
        return tables

    def remarks(self) -> Iterable[str]:
        """Say how many steps there are, and how many lie outside of the axis."""
        for origin, groups in self.panels:
            yield f"{origin.name}: " + ", ".join(f"{name} {len(found):,}" for name, found in groups.items())
            values = np.concatenate(list(groups.values()))
            edges = bin_edges(values)
            outside = int(((values < edges[0]) | (values > edges[-1])).sum())
            yield f"{origin.name}: {outside:,} of {values.size:,} steps lie outside of the axis"

    def draw(self, figure: Figure) -> None:
        """Draw a panel for each file."""
        panels = figure.subplots(len(self.panels), 1, squeeze=False)[:, 0]
        for axes, (origin, groups) in zip(panels, self.panels, strict=True):
            self._draw_panel(axes, groups)
            if len(self.panels) > 1:
                axes.set_title(legend_text(origin.name), fontsize=7, loc="left")
        panels[-1].set_xlabel(f"{self.series} reward")
        legend_above(figure, panels[0], columns=3)

    def _draw_panel(self, axes: Axes, groups: Mapping[str, np.ndarray]) -> None:
        edges = bin_edges(np.concatenate(list(groups.values())))
        offsets = iter((0, 2, 4))
        for (name, values), style in zip(groups.items(), STYLES, strict=False):
            if not values.size:
                continue
            shares = 100 * np.array(_counts(values, edges)[1:-1]) / values.size
            if name == CORRECT:
                axes.stairs(shares, edges, fill=True, color=BAND)
            steps = np.column_stack([edges[:-1], (edges[:-1] + edges[1:]) / 2, edges[1:]]).ravel()
            marked = slice(3 * next(offsets) + 1, None, 3 * MARKED_BINS)
            axes.plot(steps, np.repeat(shares, 3), label=name, markevery=marked, **style.of_line())
        axes.set_ylim(bottom=0)
        axes.set_ylabel("share of the steps (%)")


def _counts(values: np.ndarray, edges: np.ndarray) -> list[int]:
    """Return the number of values below all bins, in each, and above all."""
    inside = np.histogram(values, edges)[0]
    return [int((values < edges[0]).sum()), *map(int, inside), int((values > edges[-1]).sum())]
