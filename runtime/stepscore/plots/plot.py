"""Parts that every plot shares: the series it compares, its data as tables, its provenance."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol

import msgspec

from stepscore.jobs.provenance import Provenance
from stepscore.jobs.provenance_facts import provenance_facts
from stepscore.tabular.table import Cell, Column, Fact, Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_SERIES = 6
"""Series that can be told apart in one figure without colour."""
SERIES = Column.of("series", is_text=True)
DATA_SCHEMA_VERSION = 1


class Kind(StrEnum):
    """Kind of a plot."""

    ACCURACY = "accuracy"
    POSITION = "position"
    FIRST_ERROR = "first-error"
    STEP_REWARDS = "step-rewards"
    CALIBRATION = "calibration"


@dataclass(frozen=True, slots=True)
class Origin:
    """Name of a series, which stands in the legend, and where its rewards come from."""

    name: str
    provenance: Provenance

    @property
    def cell(self) -> Cell:
        """Return the name as the first cell of a row."""
        return Cell.of(self.name)

    def facts(self) -> tuple[Fact, ...]:
        """Return the provenance as facts of a table."""
        return tuple(provenance_facts(self.provenance))


class Plot(Protocol):
    """A plot: its numbers, and how they are drawn."""

    @property
    def kind(self) -> Kind:
        """Return the kind."""

    @property
    def title(self) -> str:
        """Return what is shown, in one line, for the metadata of the file."""

    @property
    def aspect(self) -> float:
        """Return the height of the figure over its width."""

    def origins(self) -> Sequence[Origin]:
        """Return name and provenance of every series."""

    def tables(self) -> list[Table]:
        """Return the numbers, a table for each series."""

    def remarks(self) -> Iterable[str]:
        """Return what a reader of the figure must know: what is left out, or cannot be read off it."""

    def draw(self, figure: Figure) -> None:
        """Draw the plot into an empty figure."""


class _SeriesData(msgspec.Struct, frozen=True):
    name: str
    stepscore: Provenance
    facts: dict[str, str | int | float | None]
    rows: list[dict[str, str | int | float | None]]


class _Data(msgspec.Struct, frozen=True):
    schema_version: int
    kind: Kind
    title: str
    series: list[_SeriesData]


def data_as_json(plot: Plot) -> bytes:
    """Return the numbers of a plot as indented JSON, line feed included."""
    series = [
        _SeriesData(
            origin.name,
            origin.provenance,
            {fact.key: fact.value for fact in table.facts},
            [{key: value for key, value in row.items() if key != "series"} for row in table.records()],
        )
        for origin, table in zip(plot.origins(), plot.tables(), strict=True)
    ]
    data = _Data(DATA_SCHEMA_VERSION, plot.kind, plot.title, series)
    return msgspec.json.format(msgspec.json.encode(data), indent=2) + b"\n"


def description(plot: Plot) -> str:
    """Return the provenance of all series in one line, for the metadata of a file."""
    return " | ".join(_described(origin) for origin in plot.origins())


def date_of(plot: Plot) -> str | None:
    """Return when the first of the rewards was computed, None where it is unknown."""
    return min(filter(None, (origin.provenance.date for origin in plot.origins())), default=None)


def _described(origin: Origin) -> str:
    facts: Iterator[str] = (f"{fact.name} {fact.value or fact.text}" for fact in origin.facts())
    return f"{origin.name}: {'; '.join(facts)}"
