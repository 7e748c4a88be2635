"""The commands `stepscore version`, `help` and `completion`."""

from __future__ import annotations

import platform
from enum import StrEnum
from importlib.metadata import version as version_of

import click
from click.shell_completion import get_completion_class

from stepscore.cli.json_mode import print_result
from stepscore.cli.load_options import json_option

VARIABLE = "_STEPSCORE_COMPLETE"
"""Environment variable by which click's scripts ask the program for completions."""


class Shell(StrEnum):
    """Shells that click writes completion scripts for."""

    BASH = "bash"
    ZSH = "zsh"
    FISH = "fish"


@click.command()
@json_option
def version(as_json: bool) -> None:
    """Print the versions of stepscore, Python and its libraries.

    \b
    Example:
      stepscore version --json | jq -r .version
    """
    from stepscore.cli.doctor import installed_versions

    packages = installed_versions()
    own = packages.pop("stepscore", version_of("stepscore"))
    python = platform.python_version()
    if as_json:
        from stepscore.cli.results import VersionResult

        print_result(VersionResult(version=own, python=python, packages=packages))
        return
    click.echo(f"stepscore {own}")
    for name, found in {"python": python, **packages}.items():
        click.echo(f"{name} {found}")


@click.command("help")
@click.argument("command", nargs=-1)
@json_option
@click.pass_context
def help_command(ctx: click.Context, command: tuple[str, ...], as_json: bool) -> None:
    """Print the help of a COMMAND, or of stepscore.

    \b
    Example:
      stepscore help evaluate processbench
    """
    at = ctx.find_root()
    for name in command:
        found = at.command.get_command(at, name) if isinstance(at.command, click.Group) else None
        if found is None:
            raise click.UsageError(f"{at.command_path} has no command {name!r}")
        at = click.Context(found, parent=at, info_name=name, **found.context_settings)
    if not as_json:
        click.echo(at.get_help())
        return
    from stepscore.cli.results import HelpResult

    print_result(HelpResult(path=at.command_path, text=at.get_help(), commands=_subcommands(at)))


def _subcommands(at: click.Context) -> dict[str, str]:
    """Return the subcommands of a group, each with its short help."""
    if not isinstance(at.command, click.Group):
        return {}
    named = ((name, at.command.get_command(at, name)) for name in at.command.list_commands(at))
    return {name: each.get_short_help_str() for name, each in named if each is not None}


@click.command()
@click.argument("shell", type=click.Choice(Shell, case_sensitive=False))
@json_option
@click.pass_context
def completion(ctx: click.Context, shell: Shell, as_json: bool) -> None:
    """Print the script that completes commands and options in a SHELL: bash, zsh or fish.

    \b
    Examples:
      eval "$(stepscore completion bash)"                   (in ~/.bashrc)
      eval "$(stepscore completion zsh)"                    (in ~/.zshrc)
      stepscore completion fish > ~/.config/fish/completions/stepscore.fish
    """
    root = ctx.find_root()
    classes = get_completion_class(shell.value)
    assert classes is not None
    script = classes(root.command, {}, root.info_name or "stepscore", VARIABLE).source()
    if as_json:
        from stepscore.cli.results import CompletionResult

        print_result(CompletionResult(shell=shell.value, script=script))
        return
    click.echo(script)
