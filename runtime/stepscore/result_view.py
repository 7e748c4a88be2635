"""Views of a result: plain values, one line of text, a table in a notebook; and equality of arrays."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from typing import Any

import msgspec
import numpy as np

from stepscore.visible import printable

SHOWN_STEPS = 60
SHOWN_CHARS = 600
"""Most steps of a table, and characters of a step: a notebook is stored with what it shows."""
_LISTED = 6
_LOWER, _HIGHER = "214,69,45", "45,110,214"
"""Red and blue (RGB): people who do not see red and green apart see these apart."""


def same(one: msgspec.Struct, other: msgspec.Struct) -> bool:
    """Return whether all fields of two structs of one class are equal, arrays by their elements."""
    pairs = ((getattr(one, name), getattr(other, name)) for name in one.__struct_fields__)
    return all(
        np.array_equal(left, right)
        if isinstance(left, np.ndarray) and isinstance(right, np.ndarray)
        else type(left) is type(right) and left == right
        for left, right in pairs
    )


def plain(value: msgspec.Struct) -> dict[str, Any]:
    """Return the fields that are not None as plain values: lists stand for arrays and tuples."""
    fields = ((name, getattr(value, name)) for name in value.__struct_fields__)
    return {name: _listed(each) for name, each in fields if each is not None}


def one_line_of(value: msgspec.Struct, names: Sequence[str]) -> str:
    """Return the class and these fields, those that are not None, in one line: numbers in four digits.

    >>> class Rewards(msgspec.Struct):
    ...     step_rewards: list
    ...     logprobs: object
    >>> one_line_of(Rewards([0.123456, -1.0], np.zeros(3, np.float32)), ["step_rewards", "logprobs"])
    'Rewards(step_rewards=[0.1235, -1], logprobs=float32[3])'
    """
    fields = ((name, getattr(value, name)) for name in names)
    given = ", ".join(f"{name}={_short(each)}" for name, each in fields if each is not None)
    return f"{type(value).__name__}({given})"


def rewards_table(
    step_rewards: Sequence[float], cumulative: Sequence[float], texts: Sequence[str], caption: str
) -> str:
    """Return an HTML table of n steps; `texts` [n] may be empty.

    A reward below 0 is on red, one above on blue, the darker the larger it is among the steps; `>` marks
    the lowest. All text is escaped; there is no script and no address.
    """
    names = ("step", "reward", "cumulative", *(["text"] if texts else []))
    head = "".join(f"<th>{name}</th>" for name in names)
    rows = "".join(_rows(step_rewards, cumulative, texts))
    left_out = len(step_rewards) - SHOWN_STEPS
    more = f'<tr><td colspan="{len(names)}">{left_out:,} more steps</td></tr>' if left_out > 0 else ""
    return (
        f'<table><caption style="text-align:left">{escape(caption)}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{rows}{more}</tbody></table>"
    )


def _rows(step_rewards: Sequence[float], cumulative: Sequence[float], texts: Sequence[str]) -> Iterator[str]:
    most = max(map(abs, step_rewards)) or 1.0
    lowest = min(range(len(step_rewards)), key=step_rewards.__getitem__)
    for index, (reward, total) in enumerate(zip(step_rewards, cumulative, strict=True)):
        if index == SHOWN_STEPS:
            return
        color = f"rgba({_LOWER if reward < 0 else _HIGHER},{abs(reward) / most / 2:.2f})"
        mark = "&gt; " if index == lowest else ""
        cells = f"<td>{mark}{index + 1}</td><td>{reward:+.4g}</td><td>{total:+.4g}</td>"
        if texts:
            cells += f'<td style="text-align:left;white-space:pre-wrap">{_text(texts[index])}</td>'
        yield f'<tr style="background:{color}">{cells}</tr>'


def _text(step: str) -> str:
    cut = step if len(step) <= SHOWN_CHARS else f"{step[:SHOWN_CHARS]}..."
    return escape(printable(cut))


def _listed(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.tolist()
    return list(value) if isinstance(value, list | tuple) else value


def _short(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.dtype}{list(value.shape)}"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        shown = value if len(value) <= _LISTED else [*value[: _LISTED // 2], None, value[-1]]
        return f"[{', '.join('...' if each is None else _short(each) for each in shown)}]"
    return repr(value)
