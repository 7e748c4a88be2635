"""Text of tables: CSV for programs, Markdown and LaTeX for pages and papers. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import zip_longest

from stepscore.tabular.table import Cell, Table, Value
from stepscore.visible import one_line

MOST_CHARS = 1000
_LATEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "`": r"\textasciigrave{}",
    "[": "{[}",  # behind \\ it would be an argument, and so would *
    "]": "{]}",
    "*": "{*}",
}
_SIGNS = re.compile(r"(?<![\w.-])[+-](?=[0-9])")
_DASHES = re.compile(r"--+")


def as_csv(tables: Sequence[Table]) -> str:
    """Return tables of the same columns as one CSV text (RFC 4180, but line feeds alone end lines).

    The first line has the names; values are unrounded, None is empty. The facts of a table stand behind the
    values in each of its rows, so that rows keep their origin wherever they are moved.
    """
    names = list(dict.fromkeys(key for table in tables for key in table.keys))
    facts = list(dict.fromkeys(fact.key for table in tables for fact in table.facts))
    if both := sorted({*names} & {*facts}):
        raise ValueError(f"facts have names of values: {both}")
    lines = [[*names, *facts]]
    for table in tables:
        origin = {fact.key: fact.value for fact in table.facts}
        for record in table.records():
            values = [record.get(name) for name in names] + [origin.get(fact) for fact in facts]
            lines.append([_csv(value) for value in values])
    return "".join((",".join(line) or '""') + "\n" for line in lines)


def as_markdown(table: Table) -> str:
    """Return a table as GitHub-flavoured Markdown, title above, notes and facts below."""
    lines = [_markdown(table.title), ""]
    lines.append(_markdown_row([column.name for column in table.columns]))
    lines.append("|" + "".join(":--|" if column.is_text else "--:|" for column in table.columns))
    lines += [_markdown_row([cell.text for cell in row]) for row in table.rows]
    for note in [*table.notes, *([facts_line(table)] if table.facts else [])]:
        lines += ["", _markdown(note)]
    return "\n".join(lines) + "\n"


def as_latex(table: Table) -> str:
    r"""Return a table as a LaTeX tabular with the rules of booktabs; title, notes and facts are comments.

    Further lines of a cell become rows of their own, in a smaller size.
    """
    lines = [_comment(table.title), r"% \usepackage{booktabs}"]
    layout = "".join("l" if column.is_text else "r" for column in table.columns)
    lines += [rf"\begin{{tabular}}{{{layout}}}", r"\toprule"]
    lines.append(_latex_row([_latex(column.name) for column in table.columns]))
    lines.append(r"\midrule")
    for index, row in enumerate(table.rows):
        if table.totals and index == len(table.rows) - table.totals:
            lines.append(r"\midrule")
        lines += _latex_rows(row)
    lines += [r"\bottomrule", r"\end{tabular}"]
    lines += [_comment(note) for note in table.notes]
    lines += [_comment(facts_line(table))] if table.facts else []
    return "\n".join(lines) + "\n"


def facts_line(table: Table) -> str:
    """Return the facts of a table in one line.

    >>> from stepscore.tabular.table import Fact
    >>> facts_line(Table("t", (), (), facts=(Fact.of("beta", "beta", 0.05), Fact.of("pair", "pair", "1f"))))
    'beta 0.05; pair 1f'
    """
    return "; ".join(f"{fact.name} {fact.text}" for fact in table.facts if fact.text)


def _markdown_row(texts: Sequence[str]) -> str:
    return "|" + "".join(f" {_markdown(text)} |" for text in texts)


def _markdown(text: str) -> str:
    r"""Escape what Markdown reads; line feeds become breaks.

    >>> print(_markdown("a|b*\n<i>"))
    a\|b\*<br>\<i\>
    """
    lines = text.split("\n")
    return "<br>".join(re.sub(r"([\\`*_\[\]<>|~&$#])", r"\\\1", _visible(line)) for line in lines)


def _latex_rows(row: Sequence[Cell]) -> list[str]:
    first, *others = zip_longest(*(cell.text.split("\n") for cell in row), fillvalue="")
    lines = [_latex_row([_latex(text) for text in first])]
    small = ([rf"{{\footnotesize {_latex(text)}}}" if text else "" for text in texts] for texts in others)
    return lines + [_latex_row(texts) for texts in small]


def _latex_row(cells: Sequence[str]) -> str:
    return " & ".join(cells) + r" \\"


def _latex(text: str) -> str:
    r"""Escape what LaTeX reads; a sign before a digit is set as one, and a lone hyphen as a dash.

    >>> print(_latex("50% of a_b: -1.5"))
    50\% of a\_b: $-$1.5
    """
    if text == "-":
        return "--"
    escaped = "".join(_LATEX.get(char, char) for char in _visible(text))
    escaped = _DASHES.sub(lambda dashes: "-" + "{}-" * (len(dashes[0]) - 1), escaped)
    return _SIGNS.sub(lambda sign: f"${sign[0]}$", escaped)


def _comment(text: str) -> str:
    return f"% {one_line(text, MOST_CHARS)}"


def _visible(text: str) -> str:
    return one_line(text, MOST_CHARS)


def _csv(value: Value) -> str:
    """Return a value as a field of CSV; the quotes of an empty text tell it from None.

    >>> print(_csv(0.1), _csv('6" pipe'), _csv(""), _csv(None), sep="|")
    0.1|"6"" pipe"|""|
    """
    if value is None:
        return ""
    text = repr(value) if isinstance(value, float) else str(value)
    if text and text == text.strip() and not {*text} & {*',"\r\n'}:
        return text
    return '"' + text.replace('"', '""') + '"'
