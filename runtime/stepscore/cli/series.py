"""The option --series, the same in every command that reads scored lines."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from stepscore.cli.group import say
from stepscore.cli.load_options import Words
from stepscore.enums import Series

if TYPE_CHECKING:
    from stepscore.jobs.scored_records import Scored

F = TypeVar("F", bound=Callable[..., Any])


def series_option(default: Series, purpose: str) -> Callable[[F], F]:
    """Return the option --series; `purpose` says what the values are used for."""
    return click.option(
        "--series",
        type=Words(Series, case_sensitive=False),
        default=default.value,
        show_default=True,
        help=f"{purpose}: rewards up to each step, of each step, length-normalized (cumulative reward over "
        "the number of tokens summed), or differences of these means.",
    )


def warn_of_prompts(series: Series, records: Iterable[Scored]) -> None:
    """Warn on standard error where a mean is one over prompt and response."""
    count = sum(record.sums_prompt for record in records) if series.is_normalized else 0
    if count:
        say(
            f"warning: {count:,} records were scored with the convention card: their mean is one over prompt "
            "and response; for a mean over the response, score with --convention response"
        )
