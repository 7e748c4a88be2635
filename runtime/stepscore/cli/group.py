"""Command group: plug-ins, error output, exit codes, SIGPIPE."""

from __future__ import annotations

import os
import sys
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any, NoReturn

import click

from stepscore.cli.json_mode import ARGUMENTS, ASKED, asks_for_json, print_failure
from stepscore.cli.streams import discard_standard_output, hold_standard_streams
from stepscore.errors import StepscoreError
from stepscore.extras import missing_extra
from stepscore.visible import one_line

if TYPE_CHECKING:
    from stepscore.jobs.schema import ErrorLine

PLUGIN_GROUP = "stepscore.commands"
INTERRUPTED = 130
USAGE_CODE, INTERRUPTED_CODE = "usage", "interrupted"
"""Codes of what ends a command with --json and is no StepscoreError."""
TRACEBACK = "STEPSCORE_TRACEBACK"
"""Environment variable: if set, an unexpected error is raised, with its traceback."""
NAMED_ERRORS = 5
MOST_CHARS, MOST_ID_CHARS = 1000, 80


class Interrupted(Exception):
    """The user ended a command; `message` says what is done already."""

    def __init__(self, message: str = "interrupted") -> None:
        super().__init__(message)
        self.message = message


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

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the options of the group; what a message quotes of them is printable."""
        ctx.meta[ASKED], ctx.meta[ARGUMENTS] = asks_for_json(args), list(args)
        with _reported_usage(ctx):
            return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; map every error to a message and an exit code, without a traceback."""
        try:
            try:
                with _reported_usage(ctx):
                    return super().invoke(ctx)
            finally:
                sys.stdout.flush()  # at exit it would fail without a word
        except StepscoreError as error:
            report(error)
            ctx.exit(error.exit_code)
        except BrokenPipeError:  # the reader closed the pipe: nothing may be flushed to it at exit either
            discard_standard_output()
            ctx.exit(0)
        except (OSError, MemoryError) as error:
            discard_standard_output()
            report(_in_words(error))
            ctx.exit(StepscoreError.exit_code)
        except (click.ClickException, click.Abort, click.exceptions.Exit):
            raise
        except Interrupted as end:
            _end_interrupted(ctx, end)
        except ModuleNotFoundError as error:
            fault = missing_extra(error) or _unexpected(error)
            report(fault)
            ctx.exit(fault.exit_code)
        except Exception as error:
            if os.environ.get(TRACEBACK):
                raise
            report(_unexpected(error))
            ctx.exit(StepscoreError.exit_code)
        except KeyboardInterrupt:
            _end_interrupted(ctx, Interrupted())

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run the command line with all standard streams open; help that cannot be printed is an error."""
        hold_standard_streams()
        try:
            try:
                return super().main(*args, **kwargs)
            finally:
                sys.stdout.flush()
        except OSError as error:
            discard_standard_output()
            report(_in_words(error))
            sys.exit(StepscoreError.exit_code)


def _in_words(error: OSError | MemoryError) -> StepscoreError:
    if isinstance(error, MemoryError):
        return StepscoreError("out of memory", hint="use --memory-limit, or a machine with more memory")
    place = "a file or a standard stream" if error.filename is None else str(error.filename)
    return StepscoreError(
        f"cannot read or write {place}: {error.strerror or error}",
        hint="check its path, its permissions and the space on its disk",
    )


def _unexpected(error: Exception) -> StepscoreError:
    place = traceback.extract_tb(error.__traceback__)[-1]
    return StepscoreError(
        f"unexpected {type(error).__name__}: {error} ({place.filename}, line {place.lineno})",
        hint=f"report it with the output of `stepscore doctor`; {TRACEBACK}=1 shows the traceback",
    )


def _end_interrupted(ctx: click.Context, end: Interrupted) -> NoReturn:
    if ctx.meta.get(ASKED):
        print_failure(_named(ctx), INTERRUPTED_CODE, end.message, None)
    else:
        say(end.message)
    ctx.exit(INTERRUPTED)


@contextmanager
def _reported_usage(ctx: click.Context) -> Iterator[None]:
    """Make what a usage error quotes printable; with --json, print the error as JSON."""
    try:
        yield
    except click.ClickException as error:
        error.message = one_line(error.message, MOST_CHARS)  # type: ignore[misc]
        if not ctx.meta.get(ASKED):
            raise
        at = error.ctx if isinstance(error, click.UsageError) and error.ctx is not None else ctx
        hint = f"{at.command_path} --help lists all options"
        print_failure(_named(at), USAGE_CODE, error.format_message(), hint)
        raise click.exceptions.Exit(error.exit_code) from None


def report(error: StepscoreError) -> None:
    """Print an error and its hint on standard error, with --json as JSON."""
    ctx = click.get_current_context(silent=True)
    if ctx is not None and ctx.meta.get(ASKED):
        print_failure(_named(ctx), error.code, error.message, error.hint)
        return
    say(f"error: {error.message}")
    if error.hint:
        say(f"hint: {error.hint}")


def _named(ctx: click.Context) -> str | None:
    """Return the command of a context, such as `evaluate processbench`, None where none was named.

    The context of the group of all commands, where errors end, knows only the first word.
    """
    words: list[str] = []
    while ctx.parent is not None:
        words.insert(0, ctx.info_name or "")
        ctx = ctx.parent
    if not words and ctx.invoked_subcommand and isinstance(ctx.command, click.Group):
        words = [ctx.invoked_subcommand]
        command = ctx.command.commands.get(words[0])
        if isinstance(command, click.Group):
            words += [each for each in ctx.meta[ARGUMENTS] if each in command.commands][:1]
    return " ".join(words) or None


def say(line: str) -> None:
    """Print one line on standard error: a message, whose foreign text is made printable and cut."""
    with suppress(OSError):  # standard error may be full: the exit code still says it
        click.echo(one_line(line, MOST_CHARS), err=True)


def name_failures(failed: Sequence[ErrorLine]) -> None:
    """Print the number of records with errors, their codes and first ids on standard error."""
    if not failed:
        return
    counts = Counter(line.error.code for line in failed)
    kinds = ", ".join(f"{code} {count:,}" for code, count in sorted(counts.items()))
    named = ", ".join(one_line(str(one.id), MOST_ID_CHARS) for one in failed[:NAMED_ERRORS])
    more = ", ..." if len(failed) > NAMED_ERRORS else ""
    say(f"skipped {len(failed):,} records with errors ({kinds}): {named}{more}")


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
