"""Around every command: plug-ins found by entry point, errors in two lines and an exit code, quiet pipes."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Sequence
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any

import click

from stepscore.errors import ProviderUnavailable, StepscoreError

if TYPE_CHECKING:
    from stepscore.jobs.scored_records import Failed

PLUGIN_GROUP = "stepscore.commands"
INTERRUPTED = 130
NAMED_ERRORS = 5


class Commands(click.Group):
    """A group of its own commands and of those that other packages register under PLUGIN_GROUP."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Name all commands, plug-ins too."""
        return sorted({*super().list_commands(ctx), *entry_points(group=PLUGIN_GROUP).names})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a command; a plug-in is imported only when it is asked for."""
        own = super().get_command(ctx, cmd_name)
        if own is not None:
            return own
        plugins = entry_points(group=PLUGIN_GROUP, name=cmd_name)
        return _load(next(iter(plugins))) if plugins else None

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; every way it can end has its exit code, none a traceback."""
        try:
            return super().invoke(ctx)
        except StepscoreError as error:
            report(error)
            ctx.exit(error.exit_code)
        except BrokenPipeError:  # the reader has seen enough; nothing may be flushed to it at exit either
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            ctx.exit(0)
        except KeyboardInterrupt:
            click.echo("interrupted", err=True)
            ctx.exit(INTERRUPTED)
        except ModuleNotFoundError as error:
            if error.name != "onnxruntime":
                raise
            report(
                ProviderUnavailable(
                    "onnxruntime is not installed",
                    hint="pip install 'stepscore[cpu]', or 'stepscore[cuda]' on a machine with an NVIDIA GPU",
                )
            )
            ctx.exit(ProviderUnavailable.exit_code)


def report(error: StepscoreError) -> None:
    """Say on standard error what is wrong, and what to do."""
    click.echo(f"error: {error.message}", err=True)
    if error.hint:
        click.echo(f"hint: {error.hint}", err=True)


def name_failures(failed: Sequence[Failed]) -> None:
    """Say on standard error how many records have errors, and which."""
    if not failed:
        return
    kinds = ", ".join(f"{code} {count:,}" for code, count in sorted(Counter(f.code for f in failed).items()))
    named = ", ".join(str(one.id)[:80] for one in failed[:NAMED_ERRORS])
    more = ", ..." if len(failed) > NAMED_ERRORS else ""
    click.echo(f"left out: {len(failed):,} records with errors ({kinds}): {named}{more}", err=True)


def _load(plugin: EntryPoint) -> click.Command:
    """Return the plug-in's command, or one in its place that says why there is none."""
    try:
        command = plugin.load()
    except Exception as error:
        return _broken(plugin, f"{type(error).__name__}: {error}")
    return command if isinstance(command, click.Command) else _broken(plugin, f"{plugin.value} is no command")


def _broken(plugin: EntryPoint, reason: str) -> click.Command:
    extra = f"pip install 'stepscore[{plugin.name}]' may bring what it needs"

    def refuse(arguments: tuple[str, ...]) -> None:
        raise StepscoreError(f"the command {plugin.name} cannot be loaded: {reason}", hint=extra)

    return click.Command(
        plugin.name,
        callback=refuse,
        params=[click.Argument(["arguments"], nargs=-1, type=click.UNPROCESSED)],
        context_settings={"ignore_unknown_options": True},
        add_help_option=False,
        short_help=f"(cannot be loaded: {reason})",
    )
