"""No cell breaks a table: CSV gives every value back, Markdown and LaTeX keep their rows and columns."""

from __future__ import annotations

import csv
import io
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepscore.tabular.renderers import as_csv, as_latex, as_markdown
from stepscore.tabular.table import Cell, Column, Fact, Table, Value
from stepscore.visible import printable

TEXTS = st.text(alphabet=st.sampled_from("\\{}$&#%_^~<>|`[]*\"',;\r\n\t\x00\x1b\u2028+-1a é"), max_size=9)
VALUES = st.none() | st.integers() | st.floats() | TEXTS
COLUMNS = (Column.of("name", is_text=True), Column.of_interval("accuracy", "accuracy"), Column.of("n"))


@st.composite
def tables(draw: st.DrawFn) -> Table:
    """Tables of hostile texts, in cells, title, notes and facts."""
    rows = [
        (Cell.of(name), Cell(shown, (value, None, 0.1)), Cell.of(value, name))
        for name, shown, value in draw(st.lists(st.tuples(TEXTS, TEXTS, VALUES), max_size=3))
    ]
    title, note, fact = draw(st.tuples(TEXTS, TEXTS, VALUES))
    facts = (Fact.of("pair", "pair", fact),)
    return Table(title, COLUMNS, tuple(rows), totals=len(rows) % 2, notes=(note,), facts=facts)


def spelled(value: Value) -> str:
    return "" if value is None else repr(value) if isinstance(value, float) else str(value)


@given(tables())
def test_csv_gives_every_value_and_fact_back(table: Table) -> None:
    header, *rows = csv.reader(io.StringIO(as_csv([table]), newline=""), strict=True)
    assert header == [
        "name",
        "accuracy",
        "accuracy_low",
        "accuracy_high",
        "n",
        *(["pair"] * len(table.facts)),
    ]
    facts = [fact.value for fact in table.facts]
    assert rows == [
        [spelled(value) for value in [*(value for cell in row for value in cell.values), *facts]]
        for row in table.rows
    ]


def test_csv_tells_an_empty_text_from_no_value() -> None:
    rows = tuple((Cell.of(value),) for value in ("", None, "x"))
    assert as_csv([Table("t", (Column.of("a"),), rows)]) == 'a\n""\n""\nx\n'
    two = Table("t", (Column.of("a"), Column.of("b")), ((Cell.of(""), Cell.of(None)),))
    assert as_csv([two]) == 'a,b\n"",\n'


def test_csv_of_several_tables_has_one_header_and_each_ones_facts() -> None:
    two = [
        Table("t", (Column.of("n"),), ((Cell.of(n),),), facts=(Fact.of("pair", "pair", pair),))
        for n, pair in ((1, "p"), (2, "q"))
    ]
    assert as_csv(two) == "n,pair\n1,p\n2,q\n"


def test_csv_refuses_a_fact_with_the_name_of_a_value() -> None:
    with pytest.raises(ValueError, match="facts have names of values"):
        as_csv([Table("t", (Column.of("n"),), (), facts=(Fact.of("n", "n", 1),))])


@given(tables())
def test_markdown_keeps_its_rows_and_columns(table: Table) -> None:
    lines = as_markdown(table).split("\n")
    rows = [line for line in lines[2:] if line.startswith("|")]
    assert len(rows) == len(table.rows) + 2
    for row in rows:
        assert len(re.findall(r"(?<!\\)(?:\\\\)*\|", row)) == len(COLUMNS) + 1
        assert not re.search(r"(?<!\\)(?:\\\\)*[`*_\[\]~$&]", row)
        assert not re.sub(r"<br>|\\<|\\>", "", row).count("<")
    assert all(printable(line) == line for line in lines)


@given(tables())
def test_latex_keeps_its_rows_and_columns(table: Table) -> None:
    lines = as_latex(table).split("\n")
    begin, end = lines.index(r"\begin{tabular}{lrr}"), lines.index(r"\end{tabular}")
    body = [line for line in lines[begin + 1 : end] if not re.fullmatch(r"\\(top|mid|bottom)rule", line)]
    assert len(body) >= len(table.rows) + 1
    for line in body:
        assert line.endswith(r" \\")
        inner = re.sub(r"\\[a-z]+\{\}|\\footnotesize |\\[{}$&#%_]|\$[+-]\$", ".", line.removesuffix(r" \\"))
        assert inner.count("&") == len(COLUMNS) - 1
        assert not {*inner} & {*"\\$#%_^~|<>`"}
        assert inner.count("{") == inner.count("}")
        assert "--" not in inner.replace("& --", "").removeprefix("--")
    assert all(line.startswith("% ") for line in (*lines[:begin], *lines[end + 1 : -1]))
    assert all(printable(line) == line for line in lines)


def test_latex_sets_signs_and_puts_further_lines_in_a_row_of_their_own() -> None:
    row = (Cell.of("gsm8k-1"), Cell("-1.5\n-2 to +3", (-1.5, -2, 3)), Cell.of(None))
    lines = as_latex(Table("t", COLUMNS, (row,))).split("\n")
    assert r"gsm8k-1 & $-$1.5 & -- \\" in lines
    assert r" & {\footnotesize $-$2 to $+$3} &  \\" in lines


def test_the_last_rows_stand_apart_where_they_are_totals() -> None:
    rows = tuple((Cell.of(name),) for name in ("a", "b", "all"))
    text = as_latex(Table("t", (Column.of("x"),), rows, totals=1))
    assert "b \\\\\n\\midrule\nall" in text


def test_a_row_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="does not fit the columns of 't'"):
        Table("t", COLUMNS, ((Cell.of("a"), Cell.of(1), Cell.of(2)),))
