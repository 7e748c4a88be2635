"""docs/cli.md: the help text of every command, as click prints it."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import entry_points

import click

from stepscore.cli.group import PLUGIN_GROUP
from stepscore.cli.main import main

WIDTH = 90
"""Columns of the help text, whatever terminal this is run in."""
HEAD = """# Commands

Generated from the help texts by `make docs`; `stepscore COMMAND --help` prints them.
"""


def page() -> str:
    """Return the page: a section for each command, subcommands after their group."""
    context = click.Context(main, info_name="stepscore", terminal_width=WIDTH, **main.context_settings)
    return "\n".join([HEAD, *_sections(main, context, level=2)])


def _sections(command: click.Command, context: click.Context, level: int) -> Iterator[str]:
    yield f"{'#' * level} {context.command_path}\n"
    yield f"```\n{command.get_help(context).rstrip()}\n```\n"
    if not isinstance(command, click.Group):
        return
    for name in command.list_commands(context):
        below = command.get_command(context, name)
        if below is not None and _is_bundled(name):
            settings = below.context_settings
            yield from _sections(
                below, click.Context(below, parent=context, info_name=name, **settings), level + 1
            )


def _is_bundled(name: str) -> bool:
    """Return whether a command is stepscore's: other packages installed here may register more."""
    plugins = entry_points(group=PLUGIN_GROUP, name=name)
    return all(plugin.dist is not None and plugin.dist.name == "stepscore" for plugin in plugins)
