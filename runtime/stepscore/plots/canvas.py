"""The edge to matplotlib: style, sizes and files that depend on nothing but the plot."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from stepscore.extras import naming_extras
from stepscore.plots.plot import Plot, date_of, description

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ONE_COLUMN = 3.25
"""Width of a column of two-column proceedings, in inches."""
DOTS_PER_INCH = 300
BAND = "#d9d9d9"
"""Fill behind lines: light enough for black on it."""


MARKER_DISTANCE = 0.13
"""Distance of markers on a curve of many points, as a share of the diagonal of the axes."""


class ImageFormat(StrEnum):
    """Format of a figure."""

    PDF = "pdf"
    SVG = "svg"
    PNG = "png"


@dataclass(frozen=True, slots=True)
class LineStyle:
    """A style that differs from all others in dashes and in marker, so that colour adds to it alone."""

    color: str
    dashes: tuple[float, tuple[float, ...]] | str
    marker: str
    is_filled: bool

    def of_line(self) -> dict[str, Any]:
        """Return the arguments of a line with markers."""
        return {"linestyle": self.dashes, **self.of_markers()}

    def of_markers(self) -> dict[str, Any]:
        """Return the arguments of markers."""
        face = self.color if self.is_filled else "white"
        return {"color": self.color, "marker": self.marker, "markerfacecolor": face}


STYLES = (
    LineStyle("#000000", "solid", "o", is_filled=True),
    LineStyle("#0072b2", (0, (4, 1.5)), "s", is_filled=False),
    LineStyle("#b34e00", (0, (5, 1.5, 1, 1.5)), "^", is_filled=True),
    LineStyle("#007a59", (0, (1, 1.2)), "D", is_filled=False),
    LineStyle("#994f88", (0, (8, 2)), "v", is_filled=True),
    LineStyle("#595959", (0, (3, 1, 1, 1, 1, 1)), "P", is_filled=False),
)

BASELINES = (
    LineStyle("#595959", (0, (2, 1)), "x", is_filled=True),
    LineStyle("#595959", (0, (1, 2)), "+", is_filled=True),
    LineStyle("#595959", (0, (6, 1, 1, 1, 1, 1)), "1", is_filled=True),
)
"""Styles of what a series is compared with."""

_PARAMETERS: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # comes with matplotlib: the same letters everywhere
    "font.size": 7,
    "axes.labelsize": 7,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.5,
    "xtick.labelsize": 6.5,
    "ytick.labelsize": 6.5,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "axes.formatter.limits": (-2, 4),
    "axes.formatter.use_mathtext": True,
    "hatch.linewidth": 0.4,
    "legend.fontsize": 6.5,
    "legend.frameon": False,
    "legend.handlelength": 2.8,
    "legend.columnspacing": 1.2,
    "lines.linewidth": 1.1,
    "lines.markersize": 3.5,
    "lines.markeredgewidth": 0.8,
    "pdf.fonttype": 42,  # TrueType: text stays text, and journals take it
    "svg.fonttype": "none",
    "svg.hashsalt": "stepscore",
}


def render(plot: Plot, image: ImageFormat, width: float = ONE_COLUMN) -> bytes:
    """Return the file of a figure; equal plots give equal bytes. Raises ExtraMissing without matplotlib.

    width: inches; the height follows from the plot. Text has 7 points at any width. PDF and SVG hold text as
    text, PNG has 300 dots per inch. Pair, version and date of the rewards are in the metadata of the file.
    """
    buffer = io.BytesIO()
    with _own_style():
        from matplotlib.figure import Figure  # noqa: PLC0415 - an extra; pyplot would need a display

        figure = Figure(figsize=(width, width * plot.aspect), layout="constrained")
        plot.draw(figure)
        figure.savefig(buffer, format=image.value, dpi=DOTS_PER_INCH, metadata=_metadata(plot, image))
    return buffer.getvalue()


def legend_text(name: str) -> str:
    r"""Return a name as matplotlib shows it: no mathematics, and not hidden for a leading underscore.

    >>> legend_text("_a $b$")
    ' _a \\$b\\$'
    """
    return (" " if name.startswith("_") else "") + name.replace("$", r"\$")


def legend_above(figure: Figure, axes: Axes, columns: int = 2) -> None:
    """Put the legend above the axes, where it covers no data."""
    handles, names = axes.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper center", ncols=min(columns, len(names)))


@contextmanager
def _own_style() -> Iterator[None]:
    """Use matplotlib's defaults and the parameters above, whatever a matplotlibrc says."""
    with naming_extras():
        import matplotlib as mpl  # noqa: PLC0415 - an extra, half a second
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(_PARAMETERS)
        yield


def _metadata(plot: Plot, image: ImageFormat) -> Mapping[str, Any]:
    """Return the metadata; None removes a default, above all the date of drawing."""
    date, software = date_of(plot), f"stepscore {version('stepscore')}"
    text = description(plot)
    match image:
        case ImageFormat.PDF:
            when = None if date is None else datetime.fromisoformat(date)
            return {"Title": plot.title, "Subject": text, "Creator": software, "CreationDate": when}
        case ImageFormat.SVG:
            return {"Title": plot.title, "Description": text, "Creator": software, "Date": date}
        case ImageFormat.PNG:
            found = {"Title": plot.title, "Description": text, "Software": software}
            found |= {} if date is None else {"Creation Time": date}
            return {name: value.encode("ascii", "backslashreplace") for name, value in found.items()}
