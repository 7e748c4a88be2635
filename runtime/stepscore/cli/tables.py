"""Tables for the terminal: the steps of one solution with their rewards, and two-column facts."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, TextIO

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from stepscore.evaluation.first_error import first_error
from stepscore.visible import printable

if TYPE_CHECKING:
    from stepscore.results import Result

MARK = ">"
NARROWEST, PLAIN, WIDEST = 80, 100, 120


class _Console(Console):
    def on_broken_pipe(self) -> None:
        raise BrokenPipeError  # rich would exit with 1


def console(stream: TextIO) -> Console:
    """Return a console 80 to 120 columns wide (100 without a terminal); it honours NO_COLOR."""
    columns = shutil.get_terminal_size((PLAIN, 0)).columns if stream.isatty() else PLAIN
    return _Console(file=stream, width=min(max(columns, NARROWEST), WIDEST), highlight=False, emoji=False)


def suspicious_step(step_rewards: Sequence[float], threshold: float | None) -> int:
    """Return the index of the step to highlight, -1 if there is none.

    With a threshold, the first step whose reward is below it; without one, the lowest negative reward.

    >>> suspicious_step([0.2, -0.1, -0.3], None), suspicious_step([0.2, -0.1, -0.3], -0.05)
    (2, 1)
    >>> suspicious_step([0.2, 0.1], None)
    -1
    """
    if threshold is not None:
        return first_error(step_rewards, threshold)
    lowest = min(range(len(step_rewards)), key=step_rewards.__getitem__)
    return lowest if step_rewards[lowest] < 0 else -1


def decimals(values: Iterable[float]) -> int:
    """Return the number of decimals, 2 to 9, that shows the largest value with four digits.

    >>> decimals([0.0123, -0.5]), decimals([120.0]), decimals([0.0])
    (4, 2, 4)
    """
    largest = max(map(abs, values), default=0.0)
    return min(max(3 - math.floor(math.log10(largest)), 2), 9) if largest else 4


def print_steps(
    target: Console, steps: Sequence[str], result: Result, threshold: float | None, basis: str
) -> None:
    """Print one row per step, the suspicious one highlighted; `basis` names convention and beta."""
    marked = suspicious_step(result.step_rewards, threshold)
    digits = decimals([*result.step_rewards, *result.cumulative_rewards])
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, safe_box=True, expand=False)
    table.add_column("", no_wrap=True)
    table.add_column("step", justify="right", no_wrap=True)
    table.add_column("reward", justify="right", no_wrap=True)
    table.add_column("cumulative", justify="right", no_wrap=True)
    table.add_column("text", overflow="fold", ratio=1)
    rows = zip(steps, result.step_rewards, result.cumulative_rewards, strict=True)
    for index, (step, reward, cumulative) in enumerate(rows):
        table.add_row(
            MARK if index == marked else "",
            str(index + 1),
            f"{reward:+.{digits}f}",
            f"{cumulative:+.{digits}f}",
            Text(printable(step)),
            style="bold red" if index == marked else None,
        )
    target.print(table)
    target.print(Text(_verdict(marked, threshold, result.step_rewards)))
    target.print(
        Text(f"outcome {result.outcome_reward:+.{digits}f} over {result.num_tokens} tokens ({basis})")
    )


def print_facts(target: Console, facts: Iterable[tuple[str, str]]) -> None:
    """Print names and values in two columns."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True, style="bold")
    grid.add_column(overflow="fold")
    for name, value in facts:
        grid.add_row(name, Text(printable(value)))
    target.print(grid)


def _verdict(marked: int, threshold: float | None, rewards: Sequence[float]) -> str:
    if threshold is not None and max(rewards) < threshold:
        return f"{MARK} every reward is below {threshold:g}: the highest is {max(rewards):.4g}"
    if marked >= 0:
        why = "the lowest reward" if threshold is None else f"the first reward below {threshold:g}"
        return f"{MARK} step {marked + 1} has {why}: look there first"
    if threshold is None:
        return "no step has a negative reward"
    return f"no reward is below {threshold:g}: the lowest is {min(rewards):.4g}"
