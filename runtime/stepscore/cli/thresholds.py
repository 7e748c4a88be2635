"""Options for a threshold, the same in every command: --threshold is a reward, --threshold-nats is nats."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from stepscore.cli.group import say
from stepscore.cli.load_options import finite

if TYPE_CHECKING:
    from stepscore.rewards import Scores

F = TypeVar("F", bound=Callable[..., Any])


def threshold_options(verb: str, otherwise: str | None) -> Callable[[F], F]:
    """Return the options --threshold and --threshold-nats; `otherwise` is what happens without them."""
    default = f"  [default: {otherwise}]" if otherwise is not None else ""

    def add(command: F) -> F:
        command = click.option(
            "--threshold-nats",
            metavar="NATS",
            type=float,
            callback=finite,
            help="Give the threshold in nats: a reward divided by beta.",
        )(command)
        return click.option(
            "--threshold",
            metavar="REWARD",
            type=float,
            callback=finite,
            help=f"{verb} the first step whose reward is below this value.{default}",
        )(command)

    return add


def threshold_as_reward(threshold: float | None, nats: float | None, beta: float | None) -> float | None:
    """Return the threshold of --threshold or --threshold-nats as a reward, None without either."""
    if threshold is not None and nats is not None:
        raise click.UsageError("give --threshold or --threshold-nats, not both")
    if nats is None:
        return threshold
    if beta is None:
        raise click.UsageError(
            "--threshold-nats needs the beta of the rewards: the file has no header; give --threshold, a "
            "reward, instead"
        )
    return nats * beta


def warn_outside(threshold: float, solutions: Iterable[Scores]) -> None:
    """Warn on standard error of a threshold that lies outside what the rewards span."""
    from stepscore.evaluation.threshold import outside_of

    fault = outside_of(threshold, solutions)
    if fault is not None:
        say(f"warning: {fault}; if it is in nats, use --threshold-nats")
