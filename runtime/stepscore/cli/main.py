"""The command `stepscore`: data on stdout, logs and progress on stderr, and an exit code.

    0 all scored   1 done, some records have errors   2 usage   3 artifact, export or output error
    4 resume mismatch   130 interrupted

Heavy modules are imported only by the command that needs them, so that `--help` is fast.
"""

from __future__ import annotations

from pathlib import Path

import click

from stepscore.cli.about import completion, help_command, version
from stepscore.cli.bench import bench
from stepscore.cli.evaluate import evaluate
from stepscore.cli.group import Commands
from stepscore.cli.inspect_pair import inspect, verify
from stepscore.cli.load_options import json_option
from stepscore.cli.merge import merge
from stepscore.cli.plot import plot
from stepscore.cli.report import report
from stepscore.cli.score import score
from stepscore.cli.select_samples import select
from stepscore.cli.serve import serve


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="stepscore")
def main() -> None:
    """Score every step of a solution with an implicit process reward model, at low precision.

    A PAIR is the folder that `stepscore export` writes: policy and reference model, ready to run.
    """


for command in (
    *(score, select, evaluate, bench, merge, plot, report, serve, inspect, verify),
    *(version, help_command, completion),
):
    main.add_command(command)


@main.command()
@click.argument("pair", required=False, type=click.Path(path_type=Path))
@json_option
@click.pass_context
def doctor(ctx: click.Context, pair: Path | None, as_json: bool) -> None:
    """Check whether scoring works on this machine.

    With a PAIR, check whether that pair can be scored with. Print what is missing if not.

    \b
    Example:
      stepscore doctor PAIR
    """
    from stepscore.cli.doctor import run_doctor

    ctx.exit(run_doctor(pair, as_json=as_json))
