"""The command `stepscore serve`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from stepscore.cli.group import say
from stepscore.cli.json_mode import print_result
from stepscore.cli.load_options import json_option, load_options, positive, size
from stepscore.cli.run_job import load_scorer
from stepscore.errors import RunFailed

if TYPE_CHECKING:
    from stepscore.cli.results import ServeResult
    from stepscore.scorer import Scorer
    from stepscore.server.routes import Context

MOST_DRAIN_SECONDS = 86_400


def _drain_seconds(ctx: click.Context, param: click.Parameter, value: float) -> float:
    """Raise BadParameter for NaN, infinity and more than a day: no lock waits so long."""
    if not 0 <= value <= MOST_DRAIN_SECONDS:
        raise click.BadParameter(f"must be a number of seconds from 0 to {MOST_DRAIN_SECONDS}")
    return value


@click.command()
@click.argument("pair", type=click.Path(path_type=Path))
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen at.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="Port; 0 is any free one."
)
@click.option(
    "--api-key-file",
    type=click.Path(path_type=Path),
    help="Require one of the keys in this file, one a line; STEPSCORE_API_KEY may hold keys too.",
)
@click.option(
    "--served-model-name",
    "names",
    metavar="NAME",
    multiple=True,
    help="Name of the model in answers; repeat for aliases.  [default: the name of the pair's folder]",
)
@load_options
@click.option(
    "--max-waiting-tokens",
    type=click.IntRange(min=1),
    default=262_144,
    show_default=True,
    help="Refuse calls while this many tokens wait: the wait you tolerate, in seconds, times tokens/s.",
)
@click.option(
    "--max-items", type=click.IntRange(min=1), default=1024, show_default=True, help="Maximum items per call."
)
@click.option(
    "--max-body-size",
    metavar="SIZE",
    default="8MB",
    show_default=True,
    callback=size,
    help="Maximum size of a body.",
)
@click.option(
    "--timeout",
    type=float,
    callback=positive,
    help="Default deadline of a call, in seconds.  [default: none]",
)
@click.option(
    "--overload-status",
    type=click.Choice(["503", "429"]),
    default="503",
    show_default=True,
    help="Status of refused calls; some clients give up at 429.",
)
@click.option(
    "--drain-seconds",
    type=float,
    default=30.0,
    show_default=True,
    callback=_drain_seconds,
    help="Time to finish accepted calls after SIGTERM or SIGINT.",
)
@json_option
@click.pass_context
def serve(
    ctx: click.Context,
    /,
    *,
    pair: Path,
    host: str,
    port: int,
    api_key_file: Path | None,
    names: tuple[str, ...],
    max_waiting_tokens: int,
    max_items: int,
    max_body_size: int,
    timeout: float | None,
    overload_status: str,
    drain_seconds: float,
    as_json: bool,
    **load: Any,
) -> None:
    """Serve a PAIR over HTTP.

    POST /v1/score scores texts, messages or token ids; /docs lists all routes. The address is printed when
    the server accepts calls. The first SIGTERM or SIGINT finishes accepted calls, the second ends at once.

    \b
    Examples:
      stepscore serve PAIR
      stepscore serve PAIR --host 0.0.0.0 --api-key-file keys.txt --served-model-name prm
    """
    from stepscore.scheduling.async_scorer import AsyncScorer
    from stepscore.server import lifecycle
    from stepscore.server.keys import KEY_VARIABLE, load_keys
    from stepscore.server.logs import log_to
    from stepscore.server.settings import OverloadStatus, Settings
    from stepscore.server.tracing import spans

    settings = Settings(
        max_body_bytes=max_body_size,
        max_items=max_items,
        timeout=timeout,
        overload_status=OverloadStatus(int(overload_status)),
        drain_seconds=drain_seconds,
        keys=load_keys(api_key_file),
    )
    span = spans()
    with lifecycle.bind(host, port) as bound:
        address = lifecycle.address_of(bound)
        if not settings.keys and not lifecycle.is_loopback(bound):
            say(f"warning: {address} is open to others without a key; use --api-key-file or {KEY_VARIABLE}")
        scorer = load_scorer(pair, load)
        context = context_of(scorer, pair, names)
        needs_key = bool(settings.keys)
        log_to(sys.stderr)
        in_time = lifecycle.serve(
            AsyncScorer(scorer, max_waiting_tokens=max_waiting_tokens),
            context,
            settings,
            bound,
            span=span,
            on_ready=lambda: (
                print_result(_start(address, scorer, context, needs_key=needs_key))
                if as_json
                else click.echo(_start_line(address, pair, scorer, context, guarded=needs_key))
            ),
        )
    if not in_time:
        say(f"stopped after {drain_seconds:g} seconds: calls that were not finished were answered with 503")
        ctx.exit(RunFailed.exit_code)


def context_of(scorer: Scorer, pair: Path, names: tuple[str, ...]) -> Context:
    """Return what protocols may know of a loaded pair."""
    from importlib.metadata import version

    from stepscore.server.routes import Context

    name, *aliases = names or (pair.absolute().name,)
    encoder = scorer.pair.encoder()
    return Context(
        name=name,
        aliases=tuple(aliases),
        beta=scorer.beta,
        convention=scorer.convention,
        fingerprint=scorer.pair.fingerprint,
        version=version("stepscore"),
        encoder=encoder,
        vocab_size=scorer.pair.manifest.architecture.vocab_size,
        max_tokens=encoder.max_tokens,
    )


def _start(address: str, scorer: Scorer, context: Context, *, needs_key: bool) -> ServeResult:
    from stepscore.cli.results import ServeResult

    return ServeResult(
        address=address,
        pair=context.fingerprint,
        models=[context.name, *context.aliases],
        provider=scorer.provider,
        convention=scorer.convention,
        beta=scorer.beta,
        needs_key=needs_key,
    )


def _start_line(address: str, pair: Path, scorer: Scorer, context: Context, *, guarded: bool) -> str:
    from stepscore.visible import one_line

    settings = f"{scorer.provider.value}, convention {scorer.convention.value}, beta {scorer.beta:g}"
    keys = "API keys on" if guarded else "no API key"
    names = ", ".join((context.name, *context.aliases))
    return one_line(f"serving {pair} as {names} at {address} ({settings}, {keys})", 500)
