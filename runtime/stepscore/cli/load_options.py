"""Options that commands share: each is defined once, here, and used by every command that has it.

The options of `load_options` have the names of `Scorer.load`'s parameters.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import reduce
from pathlib import Path
from typing import Any, TypeVar

import click

from stepscore.enums import Convention, Provider, Residency
from stepscore.sizes import parse_size
from stepscore.system import available_cores

F = TypeVar("F", bound=Callable[..., Any])


def size(ctx: click.Context, param: click.Parameter, value: str | None) -> int | None:
    """Parse 4GB, 4.5 GB or 900MB, in powers of ten."""
    if value is None:
        return None
    try:
        return parse_size(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


def _at_most_cores(ctx: click.Context, param: click.Parameter, value: int | None) -> int | None:
    """Warn of more threads than cores: they wait for each other, and scoring takes many times as long."""
    cores = available_cores()
    if value is not None and value > cores:
        of = "core" if cores == 1 else "cores"
        click.echo(
            f"warning: --threads {value:,} on {cores} usable {of} is slow, as threads wait for each other; "
            f"omit it, or use --threads {cores} or fewer",
            err=True,
        )
    return value


def positive(ctx: click.Context, param: click.Parameter, value: float | None) -> float | None:
    """Validate a positive, finite number."""
    if value is not None and not (math.isfinite(value) and value > 0):
        raise click.BadParameter("must be a finite number above 0")
    return value


def finite(ctx: click.Context, param: click.Parameter, value: float | None) -> float | None:
    """Validate a finite number."""
    if value is not None and not math.isfinite(value):
        raise click.BadParameter("must be a finite number")
    return value


class Words(click.Choice[Any]):
    """Choice among the values of an enum; click.Choice takes the names of its members."""

    def normalize_choice(self, choice: Any, ctx: click.Context | None) -> str:
        """Return the word to compare with."""
        return super().normalize_choice(getattr(choice, "value", choice), ctx)


convention_option = click.option(
    "--convention",
    type=Words(Convention, case_sensitive=False),
    default=Convention.CARD.value,
    show_default=True,
    help="Reward convention: card (model card), response, or exact.",
)
provider_option = click.option(
    "--provider",
    type=Words(Provider, case_sensitive=False),
    default=Provider.AUTO.value,
    show_default=True,
    help="Execution provider; auto is the one that the pair was exported for.",
)
residency_option = click.option(
    "--residency",
    type=Words(Residency, case_sensitive=False),
    default=Residency.AUTO.value,
    show_default=True,
    help="Weights kept in memory: all (resident), one model (alternate), or one layer at a time (stream); "
    "auto is the fastest that fits.",
)
memory_limit_option = click.option(
    "--memory-limit",
    metavar="SIZE",
    callback=size,
    help="Limit memory to this size, such as 4GB.  [default: free memory, on the CPU]",
)
max_batch_tokens_option = click.option(
    "--max-batch-tokens",
    type=click.IntRange(min=1),
    help="Maximum tokens per batch.  [default: up to 2048 on the CPU, 8192 on CUDA, as memory allows]",
)
window_tokens_option = click.option(
    "--window-tokens",
    type=click.IntRange(min=1),
    help="Tokens per scheduling window; prefixes are shared within it.  [default: up to 16384]",
)
prefix_cache_option = click.option(
    "--prefix-cache",
    metavar="SIZE",
    callback=size,
    help="Keep prefixes for later calls or windows in so much memory, such as 2GB.  [default: none]",
)
threads_option = click.option(
    "--threads",
    type=click.IntRange(min=1),
    callback=_at_most_cores,
    help="Number of CPU threads.  [default: all cores]",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print the result, or the error, as JSON.")
overwrite_option = click.option(
    "--overwrite", is_flag=True, help="Score everything anew where an earlier run's output is."
)
quiet_option = click.option("--quiet", is_flag=True, help="Print no progress and no summary.")


def beta_option(default: float | None = None) -> Callable[[F], F]:
    """Return the option --beta; without a default it is None: the beta of the pair."""
    of_pair = "  [default: the pair's]" if default is None else ""
    return click.option(
        "--beta",
        type=float,
        default=default,
        show_default=default is not None,
        callback=positive,
        help=f"Scale of the rewards, per nat.{of_pair}",
    )


def limit_option(verb: str, *, least: int = 1) -> Callable[[F], F]:
    """Return the option --limit: `verb`, such as Score, says what is done with the first N lines."""
    return click.option("--limit", type=click.IntRange(min=least), help=f"{verb} only the first N lines.")


def output_file_option(metavar: str) -> Callable[[F], F]:
    """Return the option --output of a command that writes one file, a string; - and None are stdout."""
    return click.option(
        "-o", "--output", metavar=f"{metavar}|-", help="Output file; - is standard output, the default."
    )


def output_folder_option(help_text: str, *, required: bool = False) -> Callable[[F], F]:
    """Return the option --output of a command that writes a folder, a Path."""
    return click.option(
        "-o",
        "--output",
        metavar="DIR",
        required=required,
        type=click.Path(path_type=Path),
        help=help_text,
    )


LOAD_OPTIONS = (
    convention_option,
    beta_option(),
    provider_option,
    residency_option,
    memory_limit_option,
    max_batch_tokens_option,
    window_tokens_option,
    threads_option,
    prefix_cache_option,
)


READING_OPTIONS = (
    click.option("--problem-field", metavar="NAME", help="Read the problem from this field of a line."),
    click.option("--steps-field", metavar="NAME", help="Read the steps from this field of a line."),
    click.option("--split", is_flag=True, help="Split a solution that is one text at blank lines."),
)


def reading_options(command: F) -> F:
    """Add the options of reading a record from a line to a command; they are the fields of `Reading`."""
    return reduce(lambda decorated, option: option(decorated), reversed(READING_OPTIONS), command)


def load_options(command: F) -> F:
    """Add the options of loading a pair for scoring to a command."""
    return reduce(lambda decorated, option: option(decorated), reversed(LOAD_OPTIONS), command)
