"""One structure for every table of figures: texts for people beside the numbers they were made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

Value = str | int | float | None


@dataclass(frozen=True, slots=True)
class Column:
    """A column: its heading, and the names of its values in CSV, one or more."""

    name: str
    keys: tuple[str, ...]
    is_text: bool = False
    """Texts are left-aligned, numbers right-aligned."""

    @classmethod
    def of(cls, name: str, key: str | None = None, *, is_text: bool = False) -> Column:
        """Return a column of one value a cell."""
        return cls(name, (name if key is None else key,), is_text)

    @classmethod
    def of_interval(cls, name: str, key: str) -> Column:
        """Return a column of means with intervals: KEY, KEY_low and KEY_high."""
        return cls(name, (key, f"{key}_low", f"{key}_high"))


@dataclass(frozen=True, slots=True)
class Cell:
    """A cell: its text, whose lines are shown below one another, and its values, unrounded."""

    text: str
    values: tuple[Value, ...]

    @classmethod
    def of(cls, value: Value, text: str | None = None) -> Cell:
        """Return a cell of one value; without a text, the value's own, - for None."""
        shown = ("-" if value is None else str(value)) if text is None else text
        return cls(shown, (value,))


@dataclass(frozen=True, slots=True)
class Fact:
    """What holds for the whole table, such as the pair; `key` is its name in CSV.

    One without a text stands in CSV alone: the title or a note already says it.
    """

    name: str
    key: str
    value: Value
    text: str

    @classmethod
    def of(cls, name: str, key: str, value: Value, text: str | None = None) -> Fact:
        """Return a fact; without a text, the value's own."""
        return cls(name, key, value, str(value) if text is None else text)


@dataclass(frozen=True, slots=True)
class Table:
    """A table; the last `totals` rows stand apart. Raises ValueError where a row does not fit the columns."""

    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    totals: int = 0
    notes: tuple[str, ...] = ()
    facts: tuple[Fact, ...] = ()

    def __post_init__(self) -> None:
        for row in self.rows:
            if [len(cell.values) for cell in row] != [len(column.keys) for column in self.columns]:
                raise ValueError(f"a row of {len(row)} cells does not fit the columns of {self.title!r}")

    @property
    def keys(self) -> tuple[str, ...]:
        """Return the names of the values of a row."""
        return tuple(key for column in self.columns for key in column.keys)

    def records(self) -> list[dict[str, Value]]:
        """Return every row as its values by name."""
        values = ([value for cell in row for value in cell.values] for row in self.rows)
        return [dict(zip(self.keys, row, strict=True)) for row in values]

    def with_facts(self, facts: Sequence[Fact]) -> Table:
        """Return the table with more facts behind its own."""
        return replace(self, facts=(*self.facts, *facts))
