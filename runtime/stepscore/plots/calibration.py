"""Calibration of sigmoid(reward / temperature) as the probability of a right answer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import TYPE_CHECKING

import numpy as np

from stepscore.plots.canvas import BAND, STYLES, LineStyle, legend_above, legend_text
from stepscore.plots.plot import SERIES, Kind, Origin
from stepscore.tabular.table import Cell, Column, Fact, Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BINS = 10
NORMAL_QUANTILE = 1.959963984540054
"""97.5th percentile of the normal distribution, for 95 % intervals."""
NARROW = 0.1
"""Span of probabilities below which a temperature is asked for."""
HATCHES = ("", "/////", ".....", "xxxxx", "-----", "|||||")
COLUMNS = (
    SERIES,
    *map(Column.of, ("bin_from", "bin_to", "num_solutions", "mean_probability")),
    Column.of_interval("share right", "share_right"),
)


@dataclass(frozen=True, slots=True)
class Bin:
    """Solutions whose probability lies in one bin; means are None in an empty one."""

    low: float
    high: float
    count: int
    mean_probability: float | None
    share_right: float | None

    def interval(self) -> tuple[float, float] | tuple[None, None]:
        """Return the 95 % Wilson interval of the share of right ones."""
        return (None, None) if self.share_right is None else wilson(self.share_right, self.count)


def wilson(share: float, count: int) -> tuple[float, float]:
    """Return the 95 % Wilson score interval of a share of `count` independent draws.

    ::

        (p + z^2 / 2n  -+  z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n),  z = 1.96

    Source: Wilson, 1927.

    >>> tuple(round(bound, 3) for bound in wilson(0.5, 10))
    (0.237, 0.763)
    """
    z = NORMAL_QUANTILE
    middle = share + z * z / (2 * count)
    spread = z * sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    scale = 1 + z * z / count
    return max(0.0, (middle - spread) / scale), min(1.0, (middle + spread) / scale)


def reliability(probabilities: np.ndarray, is_right: np.ndarray, bins: int = BINS) -> list[Bin]:
    """Return mean probability and share of right solutions in equal bins of [0, 1]; the last one holds 1.

    probabilities: float [N] in [0, 1]; is_right: bool [N].

    >>> bins = reliability(np.array([0.1, 0.9, 1.0]), np.array([False, True, False]), 2)
    >>> [(one.count, one.share_right) for one in bins]
    [(1, 0.0), (2, 0.5)]
    """
    at = np.minimum((probabilities * bins).astype(int), bins - 1)
    found = []
    for index in range(bins):
        here = at == index
        count = int(here.sum())
        means = (probabilities[here].mean(), is_right[here].mean()) if count else (None, None)
        mean, share = (None if one is None else float(one) for one in means)
        found.append(Bin(index / bins, (index + 1) / bins, count, mean, share))
    return found


def expected_calibration_error(bins: Sequence[Bin]) -> float:
    """Return the expected calibration error (ECE) over bins, as a fraction.

    ::

        sum over bins of  count / N * |share_right - mean_probability|

    It depends on the bins, and is biased upwards where they hold few solutions. Raises ValueError without
    solutions. Source: Naeini et al., 2015; Guo et al., 2017.

    >>> expected_calibration_error([Bin(0.0, 0.5, 1, 0.25, 0.0), Bin(0.5, 1.0, 3, 0.75, 1.0)])
    0.25
    """
    total = sum(one.count for one in bins)
    if not total:
        raise ValueError("there are no solutions")
    gaps = (
        one.count * abs(one.share_right - one.mean_probability)
        for one in bins
        if one.share_right is not None and one.mean_probability is not None
    )
    return sum(gaps) / total


@dataclass(frozen=True, slots=True)
class CalibrationPlot:
    """Reliability diagram of one or more scored files, with the number of solutions per bin below."""

    score_name: str
    temperature: float
    curves: tuple[tuple[Origin, tuple[Bin, ...]], ...]

    kind = Kind.CALIBRATION
    aspect = 1.15

    @property
    def title(self) -> str:
        """Return the score and the temperature."""
        return f"calibration of sigmoid({self.score_name} / {self.temperature:g})"

    def origins(self) -> Sequence[Origin]:
        """Return name and provenance of every file."""
        return [origin for origin, _ in self.curves]

    def tables(self) -> list[Table]:
        """Return a row for each bin; the expected calibration error is a fact of the table."""
        tables = []
        for origin, bins in self.curves:
            rows = tuple(
                (
                    origin.cell,
                    *map(Cell.of, (one.low, one.high, one.count, one.mean_probability)),
                    Cell("", (one.share_right, *one.interval())),
                )
                for one in bins
            )
            facts = (
                Fact.of("score", "score_name", self.score_name),
                Fact.of("temperature", "temperature", self.temperature),
                Fact.of("ECE", "expected_calibration_error", expected_calibration_error(bins)),
                *origin.facts(),
            )
            tables.append(Table(self.title, COLUMNS, rows, facts=facts))
        return tables

    def remarks(self) -> Iterable[str]:
        """Name the error measure, and warn of probabilities that are all alike."""
        for origin, bins in self.curves:
            error = expected_calibration_error(bins)
            count = sum(one.count for one in bins)
            yield (
                f"{origin.name}: expected calibration error (ECE, {len(bins)} bins) {100 * error:.1f} % over "
                f"{count:,} solutions; intervals: 95 % Wilson, as if the solutions were independent"
            )
            means = [one.mean_probability for one in bins if one.mean_probability is not None]
            if max(means) - min(means) < NARROW:
                yield (
                    f"warning: {origin.name}: all probabilities are near {means[0]:.2f}; give a "
                    "--temperature of the size of a typical reward"
                )

    def draw(self, figure: Figure) -> None:
        """Draw shares against probabilities, and below them the number of solutions per bin."""
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        upper.plot([0, 1], [0, 1], color="#999999", linewidth=0.7, label="calibrated")
        width = 0.92 / len(self.curves[0][1]) / len(self.curves)
        for index, ((origin, bins), style) in enumerate(zip(self.curves, STYLES, strict=False)):
            of = f"{origin.name}: " if len(self.curves) > 1 else ""
            label = f"{of}ECE {100 * expected_calibration_error(bins):.1f} %"
            _draw_reliability(upper, bins, label, style)
            offset = (index - (len(self.curves) - 1) / 2) * width
            middles = [(one.low + one.high) / 2 + offset for one in bins]
            lower.bar(
                middles,
                [one.count for one in bins],
                width,
                facecolor="white" if index else BAND,
                edgecolor=style.color,
                linewidth=0.6,
                hatch=HATCHES[index],
            )
        upper.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), ylabel="share of right answers")
        lower.set(xlabel=f"sigmoid(reward / {self.temperature:g})", ylabel="solutions")
        legend_above(figure, upper)


def _draw_reliability(axes: Axes, bins: Sequence[Bin], label: str, style: LineStyle) -> None:
    filled = [one for one in bins if one.count]
    intervals = [one.interval() for one in filled]
    at, shares, low, high = (
        np.array(values, np.float64)
        for values in (
            [one.mean_probability for one in filled],
            [one.share_right for one in filled],
            [low for low, _ in intervals],
            [high for _, high in intervals],
        )
    )
    axes.vlines(at, low, high, color=style.color, linewidth=0.6)
    axes.plot(at, shares, label=legend_text(label), **style.of_line())
