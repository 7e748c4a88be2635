"""Options of a selection, the same in `select` and in plots of it."""

from __future__ import annotations

from typing import Any

import click

from stepscore.cli.load_options import Words
from stepscore.enums import PROD_UNSUPPORTED, Equality, Method, Reducer


class _Reducers(Words):
    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "prod":
            self.fail(PROD_UNSUPPORTED, param, ctx)
        return super().convert(value, param, ctx)


def _sizes(ctx: click.Context, param: click.Parameter, value: str | None) -> list[int] | None:
    if value is None:
        return None
    try:
        sizes = sorted({int(part) for part in value.split(",")})
    except ValueError:
        sizes = [0]
    if sizes[0] < 1:
        raise click.BadParameter(f"invalid list of sample counts {value[:40]!r}; use e.g. 1,2,4,8")
    return sizes


method_option = click.option(
    "--method",
    type=Words(Method, case_sensitive=False),
    default="best-of-n",
    show_default=True,
    help="Select by the best score, the answer with the most weight (sigmoid of scores), or the most common "
    "answer.",
)
reducer_option = click.option(
    "--reducer",
    type=_Reducers(Reducer, case_sensitive=False),
    default="last",
    show_default=True,
    help="Reduction of step rewards to one score; cumulative-last is outcome_reward.",
)
sizes_option = click.option(
    "--n",
    "sizes",
    metavar="1,2,4,...",
    callback=_sizes,
    help="Numbers of samples to report accuracy for.  [default: powers of 2, and all]",
)
equality_option = click.option(
    "--equality",
    type=click.Choice(Equality, case_sensitive=False),
    default="math",
    show_default=True,
    help="Equality of answers: mathematical, by rules and math-verify (stepscore[select]), or exact text.",
)
seed_option = click.option(
    "--seed",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Random seed for bootstrap and subset sampling.",
)
