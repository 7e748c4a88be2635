"""Command group: plug-ins, error output, exit codes, SIGPIPE."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Sequence
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any

import click

from stepscore.errors import StepscoreError
from stepscore.extras import missing_extra

if TYPE_CHECKING:
    from stepscore.jobs.schema import ErrorLine

PLUGIN_GROUP = "stepscore.commands"
INTERRUPTED = 130
NAMED_ERRORS = 5


class Commands(click.Group):
    """Group of the built-in commands and of those that other packages register under PLUGIN_GROUP."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all commands, plug-ins included."""
        return sorted({*super().list_commands(ctx), *entry_points(group=PLUGIN_GROUP).names})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a command; import a plug-in only when it is used."""
        own = super().get_command(ctx, cmd_name)
        if own is not None:
            return own
        plugins = entry_points(group=PLUGIN_GROUP, name=cmd_name)
        return _load(next(iter(plugins))) if plugins else None

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; map every error to a message and an exit code, without a traceback."""
        try:
            return super().invoke(ctx)
        except StepscoreError as error:
            report(error)
            ctx.exit(error.exit_code)
        except BrokenPipeError:  # the reader closed the pipe: nothing may be flushed to it at exit either
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            ctx.exit(0)
        except KeyboardInterrupt:
            click.echo("interrupted", err=True)
            ctx.exit(INTERRUPTED)
        except ModuleNotFoundError as error:
            fault = missing_extra(error)
            if fault is None:
                raise
            report(fault)
            ctx.exit(fault.exit_code)


def report(error: StepscoreError) -> None:
    """Print an error and its hint on standard error."""
    click.echo(f"error: {error.message}", err=True)
    if error.hint:
        click.echo(f"hint: {error.hint}", err=True)


def name_failures(failed: Sequence[ErrorLine]) -> None:
    """Print the number of records with errors, their codes and first ids on standard error."""
    if not failed:
        return
    counts = Counter(line.error.code for line in failed)
    kinds = ", ".join(f"{code} {count:,}" for code, count in sorted(counts.items()))
    named = ", ".join(str(one.id)[:80] for one in failed[:NAMED_ERRORS])
    more = ", ..." if len(failed) > NAMED_ERRORS else ""
    click.echo(f"skipped {len(failed):,} records with errors ({kinds}): {named}{more}", err=True)


def _load(plugin: EntryPoint) -> click.Command:
    """Return the plug-in's command; if it cannot be loaded, one that reports why."""
    try:
        command = plugin.load()
    except Exception as error:
        return _broken(plugin, f"{type(error).__name__}: {error}")
    return (
        command
        if isinstance(command, click.Command)
        else _broken(plugin, f"{plugin.value} is not a click command")
    )


def _broken(plugin: EntryPoint, reason: str) -> click.Command:
    extra = f"install its dependencies, such as: pip install 'stepscore[{plugin.name}]'"

    def refuse(arguments: tuple[str, ...]) -> None:
        raise StepscoreError(f"cannot load the command {plugin.name}: {reason}", hint=extra)

    return click.Command(
        plugin.name,
        callback=refuse,
        params=[click.Argument(["arguments"], nargs=-1, type=click.UNPROCESSED)],
        context_settings={"ignore_unknown_options": True},
        add_help_option=False,
        short_help=f"(cannot be loaded: {reason})",
    )
