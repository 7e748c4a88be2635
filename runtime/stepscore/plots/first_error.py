"""Precision and recall of the first wrong step over thresholds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from stepscore.enums import Series
from stepscore.evaluation.first_error import Labels
from stepscore.plots.canvas import MARKER_DISTANCE, STYLES, legend_above, legend_text
from stepscore.plots.plot import SERIES, Kind, Origin
from stepscore.rewards import Scores
from stepscore.tabular.table import Cell, Column, Fact, Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_THRESHOLDS = 400
TAIL = 0.5
"""Percent of the thresholds at either end that the axis leaves out."""
FEWEST = 10
"""Marked solutions below which a precision is not drawn."""
MOST_FILES = 3
"""Each has two curves."""
COLUMNS = (
    SERIES,
    *map(Column.of, ("threshold", "precision", "recall", "num_marked", "num_found", "num_error")),
)


@dataclass(frozen=True, slots=True)
class Detection:
    """First wrong steps found at one threshold."""

    threshold: float
    num_marked: int
    """Solutions in which a step is below the threshold."""
    num_found: int
    """Those in which the first such step is the first wrong one."""
    num_error: int
    """Solutions with a wrong step."""

    @property
    def precision(self) -> float | None:
        """Return found / marked, None where nothing is marked."""
        return self.num_found / self.num_marked if self.num_marked else None

    @property
    def recall(self) -> float:
        """Return found / with a wrong step."""
        return self.num_found / self.num_error


def detections(scores_per_sample: Sequence[Scores], labels: Labels, thresholds: Scores) -> list[Detection]:
    """Return how many first wrong steps are found at each threshold, by `first_error`.

    A solution with scores s is marked at t where min(s) < t, and its first wrong step l found where
    s[l] < t <= min(s[:l]). Precision is found / marked; a marked solution without a wrong step, or with
    another one, is a false alarm. Recall is found / solutions with a wrong step.

    scores_per_sample: N sequences of floats, any unit. labels: int [N], index of the first wrong step or -1.
    thresholds: float [T]. Raises ValueError where no solution has a wrong step.

    >>> found = detections([[1.0, -1.0], [-2.0, 0.5]], [1, -1], [-1.5, 0.0])
    >>> [(one.precision, one.recall) for one in found]
    [(0.0, 0.0), (0.5, 1.0)]
    """
    samples = [np.asarray(scores, np.float64) for scores in scores_per_sample]
    wrong = [(scores, int(at)) for scores, at in zip(samples, labels, strict=True) if at >= 0]
    if not wrong:
        raise ValueError("no solution has a wrong step")
    at = np.asarray(thresholds, np.float64)
    spans = [(scores[label], scores[:label].min(initial=np.inf)) for scores, label in wrong]
    low, high = np.array([span for span in spans if span[0] < span[1]] or np.empty((0, 2))).T

    def below(values: np.ndarray) -> np.ndarray:
        counts: np.ndarray = np.searchsorted(np.sort(values), at, side="left")
        return counts

    marked = below(np.array([scores.min() for scores in samples]))
    found = below(low) - below(high)
    return [
        Detection(float(threshold), int(alarms), int(hits), len(wrong))
        for threshold, alarms, hits in zip(at, marked, found, strict=True)
    ]


def thresholds_of(scores_per_sample: Sequence[Scores], most: int = MOST_THRESHOLDS) -> np.ndarray:
    """Return thresholds between neighbours of the distinct scores: all, or `most` at even ranks.

    Every threshold is equivalent to one of them, to one below all scores or to one above all.

    >>> thresholds_of([[0.0, 1.0], [3.0]]).tolist()
    [0.5, 2.0]
    """
    values = np.unique(np.concatenate([np.asarray(scores, np.float64) for scores in scores_per_sample]))
    lower, upper = values[:-1], values[1:]
    between = np.where(lower / 2 + upper / 2 > lower, lower / 2 + upper / 2, upper)
    if between.size <= most:
        return between
    chosen: np.ndarray = between[np.linspace(0, between.size - 1, most).round().astype(int)]
    return chosen


@dataclass(frozen=True, slots=True)
class FirstErrorPlot:
    """Precision and recall on one or more scored files with labels."""

    series: Series
    curves: tuple[tuple[Origin, tuple[Detection, ...]], ...]

    kind = Kind.FIRST_ERROR
    aspect = 0.8

    @property
    def title(self) -> str:
        """Return the reading."""
        return f"first wrong step by {self.series} rewards"

    def origins(self) -> Sequence[Origin]:
        """Return name and provenance of every file."""
        return [origin for origin, _ in self.curves]

    def tables(self) -> list[Table]:
        """Return fractions and counts, a row for each threshold."""
        tables = []
        for origin, found in self.curves:
            rows = tuple(
                (
                    origin.cell,
                    *map(Cell.of, (one.threshold, one.precision, one.recall)),
                    *map(Cell.of, (one.num_marked, one.num_found, one.num_error)),
                )
                for one in found
            )
            facts = (Fact.of("rewards", "rewards", self.series.value), *origin.facts())
            tables.append(Table(self.title, COLUMNS, rows, facts=facts))
        return tables

    def remarks(self) -> Iterable[str]:
        """Say what is counted and what is not drawn."""
        yield (
            "precision: share of the marked solutions whose first marked step is the first wrong one; "
            "recall: share of the solutions with a wrong step in which it is the first marked one"
        )
        yield f"the axis leaves out {TAIL:g} % of the distinct rewards at either end"
        yield f"precision is not drawn where fewer than {FEWEST} solutions are marked"
        for origin, found in self.curves:
            yield f"{origin.name}: {found[0].num_error:,} solutions with a wrong step"

    def draw(self, figure: Figure) -> None:
        """Draw precision and recall of each file."""
        axes = figure.subplots()
        styles = iter(STYLES)
        for origin, found in self.curves:
            of = f"{origin.name}: " if len(self.curves) > 1 else ""
            for name in ("precision", "recall"):
                drawn = [one for one in found if name == "recall" or one.num_marked >= FEWEST]
                values = [100 * getattr(one, name) for one in drawn]
                at = [one.threshold for one in drawn]
                style = next(styles).of_line()
                axes.plot(at, values, label=legend_text(f"{of}{name}"), markevery=MARKER_DISTANCE, **style)
        axes.set_xlim(*self._limits())
        axes.set_ylim(-2, 102)
        axes.set_xlabel(f"threshold ({self.series} reward)")
        axes.set_ylabel("precision, recall (%)")
        legend_above(figure, axes)

    def _limits(self) -> tuple[float, float]:
        """Return the ends of the axis of thresholds."""
        spans = [
            np.percentile([one.threshold for one in found], (TAIL, 100 - TAIL)) for _, found in self.curves
        ]
        return float(min(low for low, _ in spans)), float(max(high for _, high in spans))
