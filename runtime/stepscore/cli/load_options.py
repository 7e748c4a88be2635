"""Options of every command that loads a pair to score with it; their names are those of `Scorer.load`."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from functools import reduce
from typing import Any, TypeVar

import click

from stepscore.enums import Convention, Provider, Residency

F = TypeVar("F", bound=Callable[..., Any])


def _size(ctx: click.Context, param: click.Parameter, value: str | None) -> int | None:
    """Read 4GB, 4.5 GB, 900MB or a number of bytes: powers of ten, as everything here is printed."""
    if value is None:
        return None
    found = re.fullmatch(r"\s*([0-9.]+)\s*([kMGT]?)B?\s*", value, re.IGNORECASE | re.ASCII)
    try:
        size = float(found[1]) * 10.0 ** (3 * " KMGT".index(found[2].upper() or " ")) if found else math.nan
    except ValueError:
        size = math.nan
    if not 0 < size < math.inf:
        raise click.BadParameter(f"{value[:40]!r} is no size; write 4GB or 900MB")
    return round(size)


def positive(ctx: click.Context, param: click.Parameter, value: float | None) -> float | None:
    """Let through what is above 0 and finite."""
    if value is not None and not (math.isfinite(value) and value > 0):
        raise click.BadParameter("must be a finite number above 0")
    return value


class Words(click.Choice[Any]):
    """The values of an enum, where click would take the names of its members."""

    def normalize_choice(self, choice: Any, ctx: click.Context | None) -> str:
        """Return the word to compare with."""
        return super().normalize_choice(getattr(choice, "value", choice), ctx)


LOAD_OPTIONS = (
    click.option(
        "--convention",
        type=click.Choice(Convention, case_sensitive=False),
        default="card",
        show_default=True,
        help="Where a step ends.",
    ),
    click.option(
        "--beta", type=float, callback=positive, help="Scale of the rewards.  [default: the pair's]"
    ),
    click.option(
        "--provider",
        type=click.Choice(Provider, case_sensitive=False),
        default="auto",
        show_default=True,
        help="What to run on.",
    ),
    click.option(
        "--residency",
        type=click.Choice(Residency, case_sensitive=False),
        default="auto",
        show_default=True,
        help="What is in memory at once; auto is the fastest that fits.",
    ),
    click.option(
        "--memory-limit",
        metavar="SIZE",
        callback=_size,
        help="Stay within this much memory, such as 4GB.  [default: what is free]",
    ),
    click.option(
        "--max-batch-tokens",
        type=click.IntRange(min=1),
        help="Tokens computed at a time.  [default: up to 2048, as memory allows]",
    ),
    click.option(
        "--window-tokens",
        type=click.IntRange(min=1),
        help="Tokens planned together: shared beginnings are found among them.  [default: up to 16384]",
    ),
    click.option("--threads", type=click.IntRange(min=1), help="CPU threads.  [default: all cores]"),
)


def load_options(command: F) -> F:
    """Give a command these options."""
    return reduce(lambda decorated, option: option(decorated), reversed(LOAD_OPTIONS), command)
